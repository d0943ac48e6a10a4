/* Exact integer sums over the pixels of an image, for colour statistics. preprocess/colour_sums.py compiles it. */

#include <stddef.h>
#include <stdint.h>

#define BLOCK 16384 /* pixels whose largest sum of products, 16384 * 255 * 255, an int32 holds */

/* Both clones are in the file; which one runs is decided by the processor that loads it. */
#define FAST __attribute__((target_clones("avx2", "default")))

/* pixels: R in the lowest byte, then G, then B; the fourth byte does not count.
   sums: of R, G, B, RR, RG, RB, GG, GB, BB; added to. */
FAST static void add_products(const uint32_t *restrict pixels, size_t count, int64_t *restrict sums)
{
    while (count > 0) {
        size_t some = count < BLOCK ? count : BLOCK;
        int32_t r = 0, g = 0, b = 0, rr = 0, rg = 0, rb = 0, gg = 0, gb = 0, bb = 0;
        for (size_t i = 0; i < some; i++) {
            int32_t x = pixels[i] & 255, y = pixels[i] >> 8 & 255, z = pixels[i] >> 16 & 255;
            r += x, g += y, b += z;
            rr += x * x, rg += x * y, rb += x * z;
            gg += y * y, gb += y * z, bb += z * z;
        }
        int32_t block[9] = {r, g, b, rr, rg, rb, gg, gb, bb};
        for (size_t i = 0; i < 9; i++)
            sums[i] += block[i];
        pixels += some;
        count -= some;
    }
}

FAST static void add_bytes(const uint8_t *restrict bytes, size_t length, uint16_t *restrict sums)
{
    for (size_t i = 0; i < length; i++)
        sums[i] += bytes[i];
}

/* The sums of all pixels of an image, and byte by byte those of a square in it: `square` has side * side pixels. */
void add_image(const uint32_t *pixels, size_t width, size_t height, size_t top, size_t left, size_t side,
               int64_t *sums, uint16_t *square)
{
    add_products(pixels, width * height, sums);
    for (size_t row = 0; row < side; row++)
        add_bytes((const uint8_t *)(pixels + (top + row) * width + left), 4 * side, square + 4 * side * row);
}
