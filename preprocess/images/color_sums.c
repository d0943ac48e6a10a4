/* The Python module `twotower_color_sums`: exact integer sums over the pixels of an image, for colour statistics.
   bootstrap.sh compiles it into the environment. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stddef.h>
#include <stdint.h>

#define BLOCK 1024 /* pixels; their levels stay in the first cache, and their sums of products in an int32 */

/* Both clones are in the file; which one runs is decided by the processor that loads it. */
#define FAST __attribute__((target_clones("avx2", "default")))

/* pixels: R in the lowest byte, then G, then B; the fourth byte does not count.
   levels: becomes R, G and B of the pixels, apart: sums of products of int16 are one instruction for 16 of them.
   sums: of R, G, B, RR, RG, RB, GG, GB, BB; added to. */
FAST static void add_block(const uint32_t *restrict pixels, size_t count, int16_t (*restrict levels)[BLOCK],
                           int64_t *restrict sums)
{
    int16_t *restrict x = levels[0], *restrict y = levels[1], *restrict z = levels[2];
    for (size_t i = 0; i < count; i++) {
        x[i] = (int16_t)(pixels[i] & 255);
        y[i] = (int16_t)(pixels[i] >> 8 & 255);
        z[i] = (int16_t)(pixels[i] >> 16 & 255);
    }
    int32_t r = 0, g = 0, b = 0, rr = 0, rg = 0, rb = 0, gg = 0, gb = 0, bb = 0;
    for (size_t i = 0; i < count; i++) {
        r += x[i], g += y[i], b += z[i];
        rr += x[i] * x[i], rg += x[i] * y[i], rb += x[i] * z[i];
        gg += y[i] * y[i], gb += y[i] * z[i], bb += z[i] * z[i];
    }
    int32_t block[9] = {r, g, b, rr, rg, rb, gg, gb, bb};
    for (size_t i = 0; i < 9; i++)
        sums[i] += block[i];
}

FAST static void add_levels(const int16_t *restrict levels, size_t count, uint16_t *restrict sums)
{
    for (size_t i = 0; i < count; i++)
        sums[i] += (uint16_t)levels[i];
}

static void add_pixels(const uint32_t *pixels, size_t width, size_t height, size_t top, size_t left, size_t side,
                       int64_t *sums, uint16_t *square)
{
    int16_t levels[3][BLOCK];
    for (size_t row = 0; row < height; row++)
        for (size_t first = 0; first < width; first += BLOCK) {
            size_t count = width - first < BLOCK ? width - first : BLOCK;
            add_block(pixels + row * width + first, count, levels, sums);
            size_t begin = first > left ? first : left;
            size_t end = first + count < left + side ? first + count : left + side;
            if (row < top || row >= top + side || begin >= end)
                continue;
            for (size_t colour = 0; colour < 3; colour++)
                add_levels(levels[colour] + (begin - first), end - begin,
                           square + (colour * side + row - top) * side + (begin - left));
        }
}

/* Arrow's C data interface (https://arrow.apache.org/docs/format/CDataInterface.html), by which Pillow exports pixels
   without a copy: a list of four bytes for each pixel. */
struct ArrowArray {
    int64_t length, null_count, offset, n_buffers, n_children;
    const void **buffers;
    struct ArrowArray **children, *dictionary;
    void (*release)(struct ArrowArray *);
    void *private_data;
};

/* add_image(pixels, width, height, top, left, side, sums, square): pixels are an "arrow_array" capsule or bytes, four
   bytes each; sums has nine int64, of R, G, B, RR, RG, RB, GG, GB, BB; square has 3 * side * side uint16. */
static PyObject *add_image(PyObject *self, PyObject *arguments)
{
    (void)self;
    PyObject *source;
    Py_ssize_t width, height, top, left, side;
    Py_buffer sums, square, bytes = {0};
    if (!PyArg_ParseTuple(arguments, "Onnnnnw*w*", &source, &width, &height, &top, &left, &side, &sums, &square))
        return NULL;
    const void *pixels = NULL;
    if (PyCapsule_IsValid(source, "arrow_array")) {
        const struct ArrowArray *array = PyCapsule_GetPointer(source, "arrow_array");
        const struct ArrowArray *levels = array->n_children == 1 ? array->children[0] : NULL;
        if (array->length == width * height && levels && levels->length == 4 * array->length && levels->n_buffers == 2)
            pixels = levels->buffers[1];
    } else if (PyObject_GetBuffer(source, &bytes, PyBUF_SIMPLE) == 0) {
        if (bytes.len == 4 * width * height)
            pixels = bytes.buf;
    } else
        PyErr_Clear();
    int valid = pixels && top >= 0 && left >= 0 && side >= 0 && top + side <= height && left + side <= width &&
                sums.len == 9 * 8 && square.len == 3 * side * side * 2;
    if (valid) {
        Py_BEGIN_ALLOW_THREADS
        add_pixels(pixels, (size_t)width, (size_t)height, (size_t)top, (size_t)left, (size_t)side, sums.buf, square.buf);
        Py_END_ALLOW_THREADS
    } else
        PyErr_SetString(PyExc_ValueError, "pixels, sums or square do not have the size that the image asks for");
    if (bytes.obj)
        PyBuffer_Release(&bytes);
    PyBuffer_Release(&sums);
    PyBuffer_Release(&square);
    return valid ? Py_NewRef(Py_None) : NULL;
}

static PyMethodDef functions[] = {{"add_image", add_image, METH_VARARGS, NULL}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "twotower_color_sums", NULL, -1, functions,
                                    NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_twotower_color_sums(void)
{
    return PyModule_Create(&module);
}
