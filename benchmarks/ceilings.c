/* The machine's own limits for rows of DIM floats: what any implementation is held against.
   Built by ceilings.py with -O3 -march=native -DDIM=n; every function works on a range of bags or
   rows, so that each thread calls it for its share. */
#include <math.h>
#include <stdint.h>

#ifndef AHEAD
#define AHEAD 16
#endif

void gather_sum(const float *records, int64_t stride, const int64_t *indices,
                const int64_t *offsets, int64_t first, int64_t last, float *out) {
    int64_t end = offsets[last];
    for (int64_t b = first; b < last; b++) {
        float sum[DIM] = {0};
        for (int64_t k = offsets[b]; k < offsets[b + 1]; k++) {
            if (k + AHEAD < end) {
                const char *next = (const char *)(records + indices[k + AHEAD] * stride);
                for (int line = 0; line < (DIM * 4 + 63) / 64; line++)
                    __builtin_prefetch(next + 64 * line, 0, 3);
            }
            const float *row = records + indices[k] * stride;
            for (int d = 0; d < DIM; d++) sum[d] += row[d];
        }
        for (int d = 0; d < DIM; d++) out[b * DIM + d] = sum[d];
    }
}

/* Adam on records [weight | exp_avg | exp_avg_sq]; merged gradients are given. */
void adam_rows(float *records, int64_t stride, const int64_t *rows, const float *grad,
               int64_t first, int64_t last, float rate, float beta1, float beta2, float eps) {
    for (int64_t i = first; i < last; i++) {
        if (i + 4 < last) {
            const char *next = (const char *)(records + rows[i + 4] * stride);
            for (int line = 0; line < (3 * DIM * 4 + 63) / 64; line++)
                __builtin_prefetch(next + 64 * line, 1, 3);
        }
        float *w = records + rows[i] * stride, *m = w + DIM, *v = m + DIM;
        const float *g = grad + i * DIM;
        for (int d = 0; d < DIM; d++) {
            float a = beta1 * m[d] + (1.0f - beta1) * g[d];
            float s = beta2 * v[d] + (1.0f - beta2) * g[d] * g[d];
            m[d] = a;
            v[d] = s;
            w[d] -= rate * a / (sqrtf(s) + eps);
        }
    }
}
