/* The machine's own limits for rows of DIM floats: what any implementation is held against.
   Built by ceilings.py with -O3 -march=native -fopenmp -DDIM=n; the distance of prefetching is an
   argument, so that the best one is found at run time. */
#ifdef __F16C__
#include <immintrin.h>
#endif
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LINES(floats) (((floats) * 4 + 63) / 64)

static inline void ahead_of(const float *row, int floats, int write) {
    for (int line = 0; line < LINES(floats); line++) {
        if (write) __builtin_prefetch((const char *)row + 64 * line, 1, 3);
        else __builtin_prefetch((const char *)row + 64 * line, 0, 3);
    }
}

/* Bytes at memory speed: what reading once and writing once costs. */
void stream_copy(float *to, const float *from, int64_t count, int threads) {
#pragma omp parallel num_threads(threads)
    {
        int64_t t = omp_get_thread_num(), n = omp_get_num_threads();
        int64_t begin = count * t / n, end = count * (t + 1) / n;
        memcpy(to + begin, from + begin, (end - begin) * sizeof(float));
    }
}

/* Columns summed in one pass over a bag, so that the sums stay in registers (AVX2's 16). */
#define PASSES ((DIM + 127) / 128)
#define COLUMNS (PASSES > 1 ? (DIM + 16 * PASSES - 1) / (16 * PASSES) * 16 : DIM)
#define REST (DIM % COLUMNS)

static inline __attribute__((always_inline)) void sum_columns(
    const float *records, int64_t stride, const int64_t *indices, int64_t begin, int64_t end,
    int64_t last, const float *weights, int mean, float *out, int64_t ahead, int column, int count,
    int more) {
    float sum[COLUMNS] = {0};
    float total = 0;
    for (int64_t k = begin; k < end; k++) {
        int64_t next = k + ahead;
        int there = column;
        if (next >= end) {
            there = more ? column + COLUMNS : 0;
            if (more) next = next - end + begin < end ? next - end + begin : end - 1;
            else next = next < last ? next : last;
        }
        ahead_of(records + indices[next] * stride + there, count, 0);
        const float *row = records + indices[k] * stride + column;
        if (weights) {
            const float w = weights[k];
            for (int d = 0; d < count; d++) sum[d] += w * row[d];
            total += w;
        } else {
            for (int d = 0; d < count; d++) sum[d] += row[d];
            total += 1;
        }
    }
    const float scale = mean && total != 0 ? 1.0f / total : 1.0f;
    for (int d = 0; d < count; d++) out[column + d] = sum[d] * scale;
}

/* Bags: out[b] = scale_b * sum_k weights[k] * row(indices[k]); weights may be NULL. */
void gather_sum(const float *records, int64_t stride, const int64_t *indices,
                const int64_t *offsets, int64_t bags, const float *weights, int mean, float *out,
                int64_t ahead, int threads) {
    const int64_t last = offsets[bags] - 1;
    const int64_t chunk = bags / (threads * 16) + 1;
#pragma omp parallel for schedule(dynamic, chunk) num_threads(threads)
    for (int64_t b = 0; b < bags; b++) {
        const int64_t begin = offsets[b], end = offsets[b + 1];
        float *to = out + b * DIM;
        for (int column = 0; column + COLUMNS <= DIM; column += COLUMNS)
            sum_columns(records, stride, indices, begin, end, last, weights, mean, to, ahead,
                        column, COLUMNS, column + COLUMNS < DIM);
        if (REST)
            sum_columns(records, stride, indices, begin, end, last, weights, mean, to, ahead,
                        DIM - REST, REST, 0);
    }
}

/* out[i] = records[rows[i]], past the caches where the processor can: nobody reads it soon. */
void copy_records(const float *records, int64_t stride, const int64_t *rows, int64_t count,
                  float *out, int64_t ahead, int threads) {
#ifdef __F16C__
    const int past = ((uintptr_t)out | DIM * 4) % 32 == 0;
#endif
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic, 256)
        for (int64_t i = 0; i < count; i++) {
            if (i + ahead < count)
                for (int line = 0; line < LINES(DIM); line++)
                    __builtin_prefetch(records + rows[i + ahead] * stride + line * 16, 0, 0);
            const float *from = records + rows[i] * stride;
            float *to = out + i * DIM;
#ifdef __F16C__
            if (past) {
                for (int d = 0; d < DIM; d += 8) _mm256_stream_ps(to + d, _mm256_loadu_ps(from + d));
                continue;
            }
#endif
            memcpy(to, from, DIM * 4);
        }
#ifdef __F16C__
        _mm_sfence();
#endif
    }
}

/* A float16 as float32, where the processor has no instruction for it: subnormal numbers by
   counting their units, the others by moving the exponent. */
static inline float from_half(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff;
    uint32_t word = rest >= 0x7c00 ? 0x7f800000 | rest << 13 : (rest << 13) + 0x38000000;
    if (rest < 0x0400) {
        const float units = rest * 0x1p-24f;
        memcpy(&word, &units, 4);
    }
    word |= sign;
    float x;
    memcpy(&x, &word, 4);
    return x;
}

static inline void add_float16(float *sum, const uint8_t *row) {
    const uint16_t *h = (const uint16_t *)row;
    int d = 0;
#ifdef __F16C__
    for (; d + 8 <= DIM; d += 8) {
        const __m256 x = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(h + d)));
        _mm256_storeu_ps(sum + d, _mm256_add_ps(_mm256_loadu_ps(sum + d), x));
    }
#endif
    for (; d < DIM; d++) sum[d] += from_half(h[d]);
}

static inline void add_bfloat16(float *sum, const uint8_t *row) {
    const uint16_t *h = (const uint16_t *)row;
    for (int d = 0; d < DIM; d++) {
        const uint32_t word = (uint32_t)h[d] << 16;
        float x;
        memcpy(&x, &word, 4);
        sum[d] += x;
    }
}

/* scale, bias, bytes: a weight is byte * scale + bias */
static inline void add_int8(float *sum, const uint8_t *row) {
    float scale, bias;
    memcpy(&scale, row, 4);
    memcpy(&bias, row + 4, 4);
    for (int d = 0; d < DIM; d++) sum[d] += row[8 + d] * scale + bias;
}

/* Bags of narrow rows summed in float32: out[b] = sum_k row(indices[k]); stride in bytes. */
#define NARROW(name, bytes)                                                                        \
    void gather_##name(const uint8_t *records, int64_t stride, const int64_t *indices,             \
                       const int64_t *offsets, int64_t bags, float *out, int64_t ahead,            \
                       int threads) {                                                              \
        const int64_t last = offsets[bags] - 1;                                                    \
        const int64_t chunk = bags / (threads * 16) + 1;                                           \
        _Pragma("omp parallel for schedule(dynamic, chunk) num_threads(threads)")                  \
        for (int64_t b = 0; b < bags; b++) {                                                       \
            float sum[DIM] = {0};                                                                  \
            for (int64_t k = offsets[b]; k < offsets[b + 1]; k++) {                                \
                const int64_t next = k + ahead < last ? k + ahead : last;                          \
                const uint8_t *there = records + indices[next] * stride;                           \
                for (int line = 0; line < (bytes); line += 64)                                     \
                    __builtin_prefetch(there + line, 0, 3);                                        \
                __builtin_prefetch(there + (bytes) - 1, 0, 3);                                     \
                add_##name(sum, records + indices[k] * stride);                                    \
            }                                                                                      \
            memcpy(out + b * DIM, sum, sizeof sum);                                                \
        }                                                                                          \
    }

NARROW(float16, 2 * DIM)
NARROW(bfloat16, 2 * DIM)
NARROW(int8, 8 + DIM)

/* One row moved by its gradient; the state lies behind the weights, as our records have it. */
static inline void lazy_adam_row(float *w, const float *g, float rate, float eps) {
    const float beta1 = 0.9f, beta2 = 0.999f;
    float *m = w + DIM, *v = m + DIM;
    for (int d = 0; d < DIM; d++) {
        float a = beta1 * m[d] + (1.0f - beta1) * g[d];
        float s = beta2 * v[d] + (1.0f - beta2) * g[d] * g[d];
        m[d] = a;
        v[d] = s;
        w[d] -= rate * a / (sqrtf(s) + eps);
    }
}

static inline void adagrad_row(float *w, const float *g, float rate, float eps) {
    float *sum = w + DIM;
    for (int d = 0; d < DIM; d++) {
        float s = sum[d] + g[d] * g[d];
        sum[d] = s;
        w[d] -= rate * g[d] / (sqrtf(s) + eps);
    }
}

static inline void row_wise_adagrad_row(float *w, const float *g, float rate, float eps) {
    float lane[16] = {0}, total = 0;
    for (int d = 0; d < DIM / 16 * 16; d += 16)
        for (int j = 0; j < 16; j++) lane[j] += g[d + j] * g[d + j];
    for (int d = DIM / 16 * 16; d < DIM; d++) lane[d % 16] += g[d] * g[d];
    for (int j = 0; j < 16; j++) total += lane[j];
    w[DIM] += total / DIM;
    const float scale = rate / (sqrtf(w[DIM]) + eps);
    for (int d = 0; d < DIM; d++) w[d] -= scale * g[d];
}

static inline void sgd_row(float *w, const float *g, float rate, float eps) {
    (void)eps;
    for (int d = 0; d < DIM; d++) w[d] -= rate * g[d];
}

/* An optimizer on distinct records; merged gradients are given. */
#define ROWS(optimizer, lanes)                                                                     \
    void optimizer##_rows(float *records, int64_t stride, const int64_t *rows, int64_t count,      \
                          const float *grad, float rate, float eps, int64_t ahead, int threads) {  \
        const int64_t chunk = count / (threads * 16) + 1;                                          \
        _Pragma("omp parallel for schedule(dynamic, chunk) num_threads(threads)")                  \
        for (int64_t i = 0; i < count; i++) {                                                      \
            int64_t next = i + ahead < count ? i + ahead : count - 1;                              \
            ahead_of(records + rows[next] * stride, lanes, 1);                                     \
            optimizer##_row(records + rows[i] * stride, grad + i * DIM, rate, eps);                \
        }                                                                                          \
    }

ROWS(lazy_adam, 3 * DIM)
ROWS(adagrad, 2 * DIM)
ROWS(row_wise_adagrad, DIM + 1)
ROWS(sgd, DIM)

/* Gradients of bags summed by row: out[u] = sum of grad[bag] over the sorted positions of row u. */
void gather_grads(const float *grad, const int32_t *bag, const int64_t *starts, int64_t rows,
                  float *out, int threads) {
    const int64_t chunk = rows / (threads * 16) + 1;
#pragma omp parallel for schedule(dynamic, chunk) num_threads(threads)
    for (int64_t u = 0; u < rows; u++) {
        float sum[DIM] = {0};
        for (int64_t k = starts[u]; k < starts[u + 1]; k++) {
            const float *g = grad + (int64_t)bag[k] * DIM;
            for (int d = 0; d < DIM; d++) sum[d] += g[d];
        }
        for (int d = 0; d < DIM; d++) out[u * DIM + d] = sum[d];
    }
}

/* Stable sort of row numbers below 2^bits with their bags, digits of 12 bits, least first. */
void sort_pairs(const int64_t *rows, const int32_t *bags, int64_t count, int bits, int64_t *rows_a,
                int32_t *bags_a, int64_t *rows_b, int32_t *bags_b, int threads) {
    enum { DIGITS = 4096 };
    int64_t *tables = calloc((size_t)threads * DIGITS, sizeof(int64_t));
    const int64_t *from_rows = rows;
    const int32_t *from_bags = bags;
    for (int shift = 0; shift < bits; shift += 12) {
        int odd = (shift / 12) & 1;
        int64_t *to_rows = odd ? rows_b : rows_a;
        int32_t *to_bags = odd ? bags_b : bags_a;
#pragma omp parallel num_threads(threads)
        {
            int t = omp_get_thread_num(), n = omp_get_num_threads();
            int64_t begin = count * t / n, end = count * (t + 1) / n;
            int64_t *mine = tables + (int64_t)t * DIGITS;
            memset(mine, 0, DIGITS * sizeof(int64_t));
            for (int64_t i = begin; i < end; i++) mine[(from_rows[i] >> shift) & (DIGITS - 1)]++;
#pragma omp barrier
#pragma omp single
            {
                int64_t sum = 0;
                for (int digit = 0; digit < DIGITS; digit++)
                    for (int k = 0; k < n; k++) {
                        int64_t here = tables[(int64_t)k * DIGITS + digit];
                        tables[(int64_t)k * DIGITS + digit] = sum;
                        sum += here;
                    }
            }
            for (int64_t i = begin; i < end; i++) {
                int64_t at = mine[(from_rows[i] >> shift) & (DIGITS - 1)]++;
                to_rows[at] = from_rows[i];
                to_bags[at] = from_bags[i];
            }
        }
        from_rows = to_rows;
        from_bags = to_bags;
    }
    free(tables);
}

/* Records read from a file in random order by many threads at once, as fio's random read does;
   returns how many reads came back short. */
int64_t random_reads(int fd, const int64_t *at, int64_t count, int64_t bytes, int threads) {
    int64_t failed = 0;
#pragma omp parallel num_threads(threads) reduction(+ : failed)
    {
        void *buffer = NULL;
        /* Direct reads want whole blocks in aligned memory. */
        int64_t room = (bytes + 8191) / 4096 * 4096;
        if (posix_memalign(&buffer, 4096, (size_t)room)) abort();
#pragma omp for schedule(dynamic, 16)
        for (int64_t i = 0; i < count; i++)
            if (pread(fd, buffer, (size_t)bytes, at[i]) != bytes) failed++;
        free(buffer);
    }
    return failed;
}
