/* Exact integer sums over the pixels of an image, for colour statistics. preprocess/colour_sums.py compiles it. */

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

/* The sums of all pixels of an image, and level by level those of a square in it: `square` has 3 * side * side. */
void add_image(const uint32_t *pixels, size_t width, size_t height, size_t top, size_t left, size_t side,
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
