/* Sums of spec/numerics.md, tile by tile: START widened, every addend added in order, the sum rounded twice.
 *
 * numpy makes the same bits in one pass an operation; here a tile of 8 rows and 32 columns stays in the first cache from
 * its first operation to its last. Every operation is exact or rounded as the specification says, in every variant:
 * products of integers are summed as integers, an integer times a scale is exact in double, and -ffp-contract=off keeps
 * the products of factors apart from their sums. Nothing is allocated, nothing is global, and every size comes from
 * native.py, which computes it from arrays. There is no Python in this file: it needs a C compiler and no headers of
 * Python, and native.py does without it where there is none. Change SKILLPACK_KERNEL with the meaning of anything here.
 */
#include <stdint.h>
#include <string.h>

#ifdef __FAST_MATH__
#error "the arithmetic is defined to the bit: no -ffast-math"
#endif

#define SKILLPACK_KERNEL 1
#define ROWS 8
#define COLS 32
#define TILE (ROWS * COLS)
#define CACHED 262144 /* bytes of packed factors that a run of columns may have, so that they stay in the second cache */
#define NONFINITE 1
#define OVERFLOW 2

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif
#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define X86 1
#endif

enum dtype { BF16, F16, F32, F64 };
enum kind { PRODUCT, LEVELS, VALUES, OUTER };

/* What is added to (rows, cols) doubles. `count` is the number of quads of codes, of columns a group, or of ranks.
 *   PRODUCT: scale * sum of left * right: (rows, rank) by skillpack_pack_left, (cols, rank) by skillpack_pack_right
 *   LEVELS:  left * right: int16 (rows, cols), float (rows, groups)
 *   VALUES:  left: float (rows, cols)
 *   OUTER:   left * right, one rank after the other: double (ranks, rows), double (ranks, cols)
 */
struct addend {
    int64_t kind;
    int64_t count;
    double scale;
    const void *left;
    const void *right;
};

struct job {
    const void *source;
    void *target;
    const struct addend *addends;
    int64_t source_dtype;
    int64_t target_dtype;
    int64_t rows;
    int64_t cols;
    int64_t addend_count;
};

/* The products of a tile: (quads, 8, 4) by (1 + quads, 32, 4) to (8, 32). */
typedef void dot_function(const uint8_t *left, const int8_t *right, int64_t quads, int32_t *sums);

INLINE float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* ------------------------------------------------------------------------------------------------ to and from double */

INLINE uint32_t widen_bf16(const uint16_t *source, double *acc, int64_t cols)
{
    uint32_t largest = 0;
    for (int64_t j = 0; j < cols; j++) {
        uint32_t magnitude = source[j] & 0x7FFFu;
        largest = magnitude > largest ? magnitude : largest;
        acc[j] = (double)float_of((uint32_t)source[j] << 16) + 0.0; /* num.zero: -0 counts as +0 */
    }
    return largest >= 0x7F80u;
}

INLINE uint32_t widen_f16(const uint16_t *source, double *acc, int64_t cols)
{
    uint32_t largest = 0;
    for (int64_t j = 0; j < cols; j++) {
        uint32_t magnitude = source[j] & 0x7FFFu;
        uint32_t sign = (uint32_t)(source[j] & 0x8000u) << 16;
        largest = magnitude > largest ? magnitude : largest;
        /* exponent and significand where a float has them: too small by the difference of the biases, exactly */
        acc[j] = (double)float_of(sign | magnitude << 13) * 0x1p112 + 0.0;
    }
    return largest >= 0x7C00u;
}

INLINE uint32_t widen_f32(const uint32_t *source, double *acc, int64_t cols)
{
    uint32_t largest = 0;
    for (int64_t j = 0; j < cols; j++) {
        uint32_t magnitude = source[j] & 0x7FFFFFFFu;
        largest = magnitude > largest ? magnitude : largest;
        acc[j] = (double)float_of(source[j]) + 0.0;
    }
    return largest >= 0x7F800000u;
}

INLINE uint32_t round_bf16(const double *acc, uint16_t *target, int64_t cols)
{
    uint32_t largest = 0;
    for (int64_t j = 0; j < cols; j++) {
        uint32_t bits = bits_of((float)acc[j]);
        bits = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16; /* ties to even */
        largest = (bits & 0x7FFFu) > largest ? bits & 0x7FFFu : largest;
        target[j] = (uint16_t)bits;
    }
    return largest >= 0x7F80u;
}

INLINE uint32_t round_f16(const double *acc, uint16_t *target, int64_t cols)
{
    uint32_t largest = 0;
    for (int64_t j = 0; j < cols; j++) {
        uint32_t bits = bits_of((float)acc[j]);
        uint32_t sign = bits >> 16 & 0x8000u;
        uint32_t magnitude = bits & 0x7FFFFFFFu;
        /* one step of an F16 below 2^-14 is one of a float in [0.5, 1): the addition rounds to it, ties to even */
        uint32_t small = bits_of(float_of(magnitude) + 0.5f) - 0x3F000000u;
        uint32_t large = (magnitude + 0xFFFu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13;
        uint32_t infinite = magnitude >= 0x477FF000u ? 0x7C00u : large; /* from 65520 on */
        uint32_t rounded = magnitude < 0x38800000u ? small : infinite;
        largest = rounded > largest ? rounded : largest;
        target[j] = (uint16_t)(sign | rounded);
    }
    return largest >= 0x7C00u;
}

INLINE uint32_t round_f32(const double *acc, uint32_t *target, int64_t cols)
{
    uint32_t largest = 0;
    for (int64_t j = 0; j < cols; j++) {
        uint32_t bits = bits_of((float)acc[j]);
        uint32_t magnitude = bits & 0x7FFFFFFFu;
        largest = magnitude > largest ? magnitude : largest;
        target[j] = bits;
    }
    return largest >= 0x7F800000u;
}

/* ------------------------------------------------------------------------------------------------------------ addends */

INLINE void add_product(const struct addend *each, int64_t row, int64_t col, double *acc, dot_function *dot)
{
    int32_t sums[TILE];
    const uint8_t *left = (const uint8_t *)each->left + row * each->count * 4;
    const int8_t *right = (const int8_t *)each->right + col * (1 + each->count) * 4;
    dot(left, right, each->count, sums);
    for (int64_t i = 0; i < TILE; i++)
        acc[i] += each->scale * (double)sums[i]; /* exact before it is added: 24 + 24 bits */
}

INLINE void add_levels(const struct addend *each, int64_t row, int64_t col, int64_t width, int64_t cols, double *acc)
{
    const int16_t *levels = (const int16_t *)each->left + row * width + col;
    const float *scales = (const float *)each->right + row * ((width + each->count - 1) / each->count);
    for (int64_t j = 0; j < cols;) {
        int64_t group = (col + j) / each->count;
        int64_t end = (group + 1) * each->count - col;
        double scale = (double)scales[group];
        end = end < cols ? end : cols;
        for (; j < end; j++)
            acc[j] += scale * (double)levels[j]; /* exact before it is added: 9 + 24 bits */
    }
}

INLINE void add_values(const struct addend *each, int64_t row, int64_t col, int64_t width, int64_t cols, double *acc)
{
    const float *values = (const float *)each->left + row * width + col;
    for (int64_t j = 0; j < cols; j++)
        acc[j] += (double)values[j];
}

INLINE void add_outer(const struct addend *each, const struct job *job, int64_t row, int64_t col, int64_t cols, double *acc)
{
    for (int64_t k = 0; k < each->count; k++) {
        double left = ((const double *)each->left)[k * job->rows + row];
        const double *right = (const double *)each->right + k * job->cols + col;
        for (int64_t j = 0; j < cols; j++) {
            double product = left * right[j]; /* rounded by itself: factors.md */
            acc[j] += product;
        }
    }
}

/* ------------------------------------------------------------------------------------------------------------- a tile */

INLINE uint32_t make_tile(const struct job *job, int64_t row, int64_t col, int64_t rows, int64_t cols, dot_function *dot)
{
    double acc[TILE];
    uint32_t nonfinite = 0, overflow = 0;
    if (rows < ROWS || cols < COLS)
        memset(acc, 0, sizeof acc); /* a product adds zeros to what is outside */
    for (int64_t i = 0; i < rows; i++) {
        int64_t at = (row + i) * job->cols + col;
        double *line = acc + i * COLS;
        if (job->source_dtype == BF16)
            nonfinite |= widen_bf16((const uint16_t *)job->source + at, line, cols);
        else if (job->source_dtype == F16)
            nonfinite |= widen_f16((const uint16_t *)job->source + at, line, cols);
        else if (job->source_dtype == F32)
            nonfinite |= widen_f32((const uint32_t *)job->source + at, line, cols);
        else
            memcpy(line, (const double *)job->source + at, (size_t)cols * sizeof *line);
    }
    for (int64_t k = 0; k < job->addend_count; k++) {
        const struct addend *each = job->addends + k;
        if (each->kind == PRODUCT) {
            add_product(each, row, col, acc, dot);
            continue;
        }
        for (int64_t i = 0; i < rows; i++) {
            if (each->kind == LEVELS)
                add_levels(each, row + i, col, job->cols, cols, acc + i * COLS);
            else if (each->kind == VALUES)
                add_values(each, row + i, col, job->cols, cols, acc + i * COLS);
            else
                add_outer(each, job, row + i, col, cols, acc + i * COLS);
        }
    }
    for (int64_t i = 0; i < rows; i++) {
        int64_t at = (row + i) * job->cols + col;
        double *line = acc + i * COLS;
        if (job->target_dtype == BF16)
            overflow |= round_bf16(line, (uint16_t *)job->target + at, cols);
        else if (job->target_dtype == F16)
            overflow |= round_f16(line, (uint16_t *)job->target + at, cols);
        else if (job->target_dtype == F32)
            overflow |= round_f32(line, (uint32_t *)job->target + at, cols);
        else
            memcpy((double *)job->target + at, line, (size_t)cols * sizeof *line);
    }
    return (nonfinite ? NONFINITE : 0) | (overflow ? OVERFLOW : 0);
}

INLINE uint32_t make_tiles(const struct job *job, dot_function *dot)
{
    uint32_t found = 0;
    int64_t bytes = 4; /* of packed factors a column */
    for (int64_t k = 0; k < job->addend_count; k++)
        bytes += job->addends[k].kind == PRODUCT ? 4 * (1 + job->addends[k].count) : 0;
    int64_t run = CACHED / bytes / COLS * COLS;
    run = run < COLS ? COLS : run;
    for (int64_t first = 0; first < job->cols; first += run) {
        int64_t last = job->cols - first < run ? job->cols : first + run;
        for (int64_t row = 0; row < job->rows; row += ROWS) {
            int64_t rows = job->rows - row < ROWS ? job->rows - row : ROWS;
            for (int64_t col = first; col < last; col += COLS) {
                if (rows == ROWS && last - col >= COLS)
                    found |= make_tile(job, row, col, ROWS, COLS, dot);
                else
                    found |= make_tile(job, row, col, rows, last - col < COLS ? last - col : COLS, dot);
            }
        }
    }
    return found;
}

/* ----------------------------------------------------------------------------------------------------------- variants */

INLINE void dot_plain(const uint8_t *left, const int8_t *right, int64_t quads, int32_t *sums)
{
    for (int64_t i = 0; i < ROWS; i++)
        memcpy(sums + i * COLS, right, COLS * sizeof *sums);
    for (int64_t k = 0; k < quads; k++, left += 4 * ROWS) {
        right += 4 * COLS;
        for (int64_t i = 0; i < ROWS; i++)
            for (int64_t j = 0; j < COLS; j++)
                sums[i * COLS + j] += left[4 * i] * right[4 * j] + left[4 * i + 1] * right[4 * j + 1] +
                                      left[4 * i + 2] * right[4 * j + 2] + left[4 * i + 3] * right[4 * j + 3];
    }
}

static uint32_t make_plain(const struct job *job)
{
    return make_tiles(job, dot_plain);
}

#ifdef X86

INLINE int32_t quad_of(const uint8_t *codes)
{
    int32_t quad;
    memcpy(&quad, codes, sizeof quad);
    return quad;
}

#define WIDENED 128 /* quads at a time whose left codes become 16 bits wide, once for all columns */

/* 4 rows, 8 columns: as many sums as there are registers for. Two a column, of two codes of every quad each. */
__attribute__((target("avx2"), noinline)) static void add_dots_avx2(
    const uint16_t *left, const int8_t *right, int64_t quads, int32_t *sums)
{
    __m256i acc[4][2];
    for (int i = 0; i < 4; i++)
        acc[i][0] = acc[i][1] = _mm256_setzero_si256();
    for (int64_t k = 0; k < quads; k++, left += 4 * ROWS, right += 4 * COLS) {
        __m256i low = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)right));
        __m256i high = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(right + 16)));
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            __m256i quad = _mm256_broadcastq_epi64(_mm_loadl_epi64((const __m128i *)(left + 4 * i)));
            acc[i][0] = _mm256_add_epi32(acc[i][0], _mm256_madd_epi16(low, quad));
            acc[i][1] = _mm256_add_epi32(acc[i][1], _mm256_madd_epi16(high, quad));
        }
    }
    for (int i = 0; i < 4; i++) {
        __m256i *line = (__m256i *)(sums + i * COLS);
        __m256i both = _mm256_permute4x64_epi64(_mm256_hadd_epi32(acc[i][0], acc[i][1]), 0xD8);
        _mm256_storeu_si256(line, _mm256_add_epi32(_mm256_loadu_si256(line), both));
    }
}

__attribute__((target("avx2"))) static inline void dot_avx2(
    const uint8_t *left, const int8_t *right, int64_t quads, int32_t *sums)
{
    uint16_t wide[WIDENED * 4 * ROWS];
    for (int64_t i = 0; i < ROWS; i++)
        memcpy(sums + i * COLS, right, COLS * sizeof *sums);
    for (right += 4 * COLS; quads > 0; quads -= WIDENED, left += WIDENED * 4 * ROWS, right += WIDENED * 4 * COLS) {
        int64_t count = quads < WIDENED ? quads : WIDENED;
        for (int64_t i = 0; i < count * 4 * ROWS; i++)
            wide[i] = left[i];
        for (int64_t row = 0; row < ROWS; row += 4)
            for (int64_t col = 0; col < COLS; col += 8)
                add_dots_avx2(wide + 4 * row, right + 4 * col, count, sums + row * COLS + col);
    }
}

__attribute__((target("avx2"))) static uint32_t make_avx2(const struct job *job)
{
    return make_tiles(job, dot_avx2);
}

#define AVX512_SETS "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"
#ifdef __clang__
#define AVX512 AVX512_SETS
#else
#define AVX512 AVX512_SETS ",prefer-vector-width=512"
#endif

__attribute__((target(AVX512))) static inline void dot_avx512(
    const uint8_t *left, const int8_t *right, int64_t quads, int32_t *sums)
{
    __m512i acc[ROWS][2];
    for (int i = 0; i < ROWS; i++) {
        acc[i][0] = _mm512_loadu_si512(right);
        acc[i][1] = _mm512_loadu_si512(right + 64);
    }
    for (int64_t k = 0; k < quads; k++, left += 4 * ROWS) {
        right += 4 * COLS;
        __m512i low = _mm512_loadu_si512(right), high = _mm512_loadu_si512(right + 64);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) {
            __m512i quad = _mm512_set1_epi32(quad_of(left + 4 * i));
            acc[i][0] = _mm512_dpbusd_epi32(acc[i][0], quad, low);
            acc[i][1] = _mm512_dpbusd_epi32(acc[i][1], quad, high);
        }
    }
    for (int i = 0; i < ROWS; i++) {
        _mm512_storeu_si512(sums + i * COLS, acc[i][0]);
        _mm512_storeu_si512(sums + i * COLS + 16, acc[i][1]);
    }
}

__attribute__((target(AVX512))) static uint32_t make_avx512(const struct job *job)
{
    return make_tiles(job, dot_avx512);
}

#endif

/* -------------------------------------------------------------------------------------------------- what Python calls */

int64_t skillpack_kernel(void)
{
    return SKILLPACK_KERNEL;
}

/* The best variant here: 0 for plain C, 1 with AVX2, 2 with AVX-512 and VNNI. All below it run too. */
int64_t skillpack_variant(void)
{
#ifdef X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq"))
        return 2;
    if (__builtin_cpu_supports("avx2"))
        return 1;
#endif
    return 0;
}

/* Four codes of an item from `at` on, zeros where there is none. */
INLINE uint32_t quad_at(const int8_t *codes, int64_t items, int64_t rank, int64_t item, int64_t at)
{
    uint32_t quad = 0;
    if (item < items)
        memcpy(&quad, codes + item * rank + at, rank - at < 4 ? (size_t)(rank - at) : 4);
    return quad;
}

/* Codes (rows, rank) plus 128, which makes them unsigned, as (rows / 8, rank / 4, 8, 4), both rounded up. */
void skillpack_pack_left(const int8_t *codes, int64_t rows, int64_t rank, uint8_t *packed)
{
    for (int64_t first = 0; first < rows; first += ROWS)
        for (int64_t k = 0; k < rank; k += 4)
            for (int64_t i = first; i < first + ROWS; i++, packed += 4) {
                uint32_t quad = quad_at(codes, rows, rank, i, k) ^ 0x80808080u;
                memcpy(packed, &quad, sizeof quad);
            }
}

/* Codes (cols, rank) as (cols / 32, 1 + rank / 4, 32, 4), both rounded up, zeros where there is no code. The first of
 * the 1 + rank / 4 holds an int32 a column, what its sums begin with: -128 times its codes, for what left has more.
 * Modulo 2^32, in which all sums are made: what comes out is within 2^24 by the format.
 */
void skillpack_pack_right(const int8_t *codes, int64_t cols, int64_t rank, int8_t *packed)
{
    for (int64_t first = 0; first < cols; first += COLS) {
        for (int64_t j = first; j < first + COLS; j++, packed += 4) {
            uint32_t sum = 0;
            for (int64_t at = 0; at < rank && j < cols; at++)
                sum += (uint32_t)codes[j * rank + at];
            uint32_t start = sum * (uint32_t)-128;
            memcpy(packed, &start, sizeof start);
        }
        for (int64_t k = 0; k < rank; k += 4)
            for (int64_t j = first; j < first + COLS; j++, packed += 4) {
                uint32_t quad = quad_at(codes, cols, rank, j, k);
                memcpy(packed, &quad, sizeof quad);
            }
    }
}

static uint32_t make_as(const struct job *job, int64_t variant)
{
#ifdef X86
    if (variant == 2)
        return make_avx512(job);
    if (variant == 1)
        return make_avx2(job);
#endif
    (void)variant;
    return make_plain(job);
}

/* Makes (rows, cols); whether an element of the source is not finite (1), or a result is out of range (2). Another
 * library may have this thread flush subnormals, or round in another way: not here.
 */
int64_t skillpack_make(const struct job *job, int64_t variant)
{
#ifdef X86
    unsigned int before = _mm_getcsr();
    _mm_setcsr(0x1F80); /* as a thread begins: to nearest, gradual underflow, nothing trapped */
#endif
    uint32_t found = make_as(job, variant);
#ifdef X86
    _mm_setcsr(before);
#endif
    return found;
}
