// RMSNorm, rotary embedding and rows by index for a training step, each in one pass over memory.
//
// Legend: rows are tokens (or tokens x heads), n their width; strides are in floats.
#pragma once

#include <vector>

#include "fp8_values.h"

namespace fathom {

// y [rows, n] = x * inverse * weight with inverse [rows] = 1 / sqrt(mean(x^2) + eps).
inline void rms_norm(const float* x, int64_t stride, const float* weight, int64_t rows, int64_t n, float eps, float* y,
                     float* inverse) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; ++r) {
        const float* const from = x + r * stride;
        float* const to = y + r * n;
        vf squares = {};
        int64_t i = 0;
        for (; i + W <= n; i += W) squares = fma(load(from + i), load(from + i), squares);
        float all = sum_of(squares);
        for (; i < n; ++i) all += from[i] * from[i];
        const float inv = inverse[r] = 1.f / std::sqrt(all / static_cast<float>(n) + eps);
        for (i = 0; i + W <= n; i += W) store(to + i, load(from + i) * splat(inv) * load(weight + i));
        for (; i < n; ++i) to[i] = from[i] * inv * weight[i];
    }
}

// With u = dy * weight: dx = inverse * (u - x * inverse^2 * mean(u x)); dw [n] = sum over rows of dy * x * inverse.
// Rows are summed in PARTS parts whatever the number of threads, so dw does not depend on it.
inline void rms_norm_backward(const float* dy, const float* x, int64_t stride, const float* weight, const float* inverse,
                              int64_t rows, int64_t n, float* dx, float* dw) {
    constexpr int64_t PARTS = 16;
    std::vector<float> sums(PARTS * n);
#pragma omp parallel for schedule(static)
    for (int64_t part = 0; part < PARTS; ++part) {
        float* const sum = sums.data() + part * n;
        for (int64_t r = rows * part / PARTS; r < rows * (part + 1) / PARTS; ++r) {
            const float *const g = dy + r * n, *const from = x + r * stride;
            float* const to = dx + r * n;
            const float inv = inverse[r];
            vf dot = {};
            int64_t i = 0;
            for (; i + W <= n; i += W) {
                const vf gx = load(g + i) * load(from + i);
                dot = fma(gx, load(weight + i), dot);
                store(sum + i, fma(gx, splat(inv), load(sum + i)));
            }
            float all = sum_of(dot);
            for (; i < n; ++i) {
                all += g[i] * from[i] * weight[i];
                sum[i] += g[i] * from[i] * inv;
            }
            const float back = all * inv * inv / static_cast<float>(n);
            for (i = 0; i + W <= n; i += W)
                store(to + i, splat(inv) * (load(g + i) * load(weight + i) - load(from + i) * splat(back)));
            for (; i < n; ++i) to[i] = inv * (g[i] * weight[i] - from[i] * back);
        }
    }
    std::fill(dw, dw + n, 0.f);
    for (int64_t part = 0; part < PARTS; ++part)
        for (int64_t i = 0; i < n; ++i) dw[i] += sums[part * n + i];
}

// Adjacent pairs of x [B, T, H, width], strides of its first three axes, turned by the angle of (b, t), with `sign` -1
// backwards; y contiguous. cos and sin [B or 1, T, width / 2]: `shared` where all sequences have the same positions.
inline void rotate(const float* x, const int64_t* strides, int64_t sequences, int64_t tokens, int64_t heads,
                   int64_t width, const float* cos, const float* sin, bool shared, float sign, float* y) {
    const int64_t half = width / 2;
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < sequences * tokens; ++row) {
        const int64_t b = row / tokens, t = row % tokens, angle = (shared ? t : row) * half;
        const float *const c = cos + angle, *const s = sin + angle;
        for (int64_t h = 0; h < heads; ++h) {
            const float* const from = x + b * strides[0] + t * strides[1] + h * strides[2];
            float* const to = y + (row * heads + h) * width;
            for (int64_t i = 0; i < half; ++i) {
                const float even = from[2 * i], odd = from[2 * i + 1], turn = sign * s[i];
                to[2 * i] = even * c[i] - odd * turn;
                to[2 * i + 1] = even * turn + odd * c[i];
            }
        }
    }
}

// out [count] = rows x[index] of `bytes` bytes each.
inline void take_rows(const char* x, int64_t bytes, const int64_t* index, int64_t count, char* out) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < count; ++r) std::memcpy(out + r * bytes, x + index[r] * bytes, bytes);
}

}  // namespace fathom
