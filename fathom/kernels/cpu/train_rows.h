// Elementwise parts of a training step, each in one pass over memory; the definitions are in kernels/train_ops.py.
//
// Legend: rows r are (token, expert) pairs, I expert width, D hidden, K experts per token.
#pragma once

#include "fp8_values.h"

namespace fathom {

// To BF16's 8 significant bits, to nearest even, kept as FP32. Finite values only.
INLINE vf to_bf16(vf x) {
    const vu bits = (vu)x;
    return (vf)((bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u);
}

INLINE void round_bf16(const float* x, int64_t n, float* y) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n / W; ++i) store(y + i * W, to_bf16(load(x + i * W)));
    for (int64_t i = n / W * W; i < n; ++i) y[i] = to_bf16(splat(x[i]))[0];
}

// E5M6 with power-of-two scales per 1x128, back in FP32: what o_proj's input is cached as.
inline void round_e5m6(const float* x, int64_t rows, int64_t n, float* y) {
    constexpr float LARGEST = 65024.f;
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < n; c += TILE_K) {
            const int64_t count = std::min(TILE_K, n - c);
            const float* const from = x + r * n + c;
            const float raw = std::max(largest(from, count), AMAX_FLOOR) / LARGEST;
            uint32_t bits;
            std::memcpy(&bits, &raw, 4);
            bits = (bits + 0x7fffffu) & 0xff800000u;
            float scale;
            std::memcpy(&scale, &bits, 4);
            alignas(64) float rest[W] = {};
            for (int64_t i = 0; i < count; i += W) {
                const int64_t lanes = std::min<int64_t>(W, count - i);
                vf v = lanes == W ? load(from + i) : (std::memcpy(rest, from + i, lanes * 4), load(rest));
                v = smaller(splat(LARGEST), larger(splat(-LARGEST), v / splat(scale)));
                const vu sign = (vu)v & 0x80000000u, magnitude = (vu)v & 0x7fffffffu;
                const vu normal = (magnitude + 0xffffu + ((magnitude >> 17) & 1u)) & 0xfffe0000u;
                const vf small = ((vf)magnitude + 8.f) - 8.f;  // one step of 8's last bit is 2^-20
                const vf rounded = ((vi)magnitude < 0x38800000) ? small : (vf)normal;  // below 2^-14
                const vf out = (vf)((vu)(rounded * splat(scale)) | sign);
                if (lanes == W) store(y + r * n + c + i, out);
                else std::memcpy(y + r * n + c + i, &out, lanes * 4);
            }
        }
}

// h [rows, 2I] = (gate | up) -> a [rows, I] = silu(gate) * up.
inline void swiglu(const float* h, int64_t rows, int64_t width, float* a) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; ++r) {
        const float *const g = h + r * 2 * width, *const u = g + width;
        float* const to = a + r * width;
        int64_t i = 0;
        for (; i + W <= width; i += W) store(to + i, load(g + i) * sigmoid(load(g + i)) * load(u + i));
        for (; i < width; ++i) to[i] = (splat(g[i]) * sigmoid(splat(g[i])) * splat(u[i]))[0];
    }
}

// da [rows, I], the gradient of the unweighted output's input; weight [rows] or null -> dh [rows, 2I], a, and the
// weights' gradient dw [rows] = da . a (only with weights).
inline void swiglu_backward(const float* h, const float* da, const float* weight, int64_t rows, int64_t width, float* dh,
                            float* a, float* dw) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; ++r) {
        const float *const g = h + r * 2 * width, *const u = g + width, *const d = da + r * width;
        float *const dg = dh + r * 2 * width, *const du = dg + width, *const to = a + r * width;
        const float w = weight ? weight[r] : 1.f;
        vf dot = {};
        alignas(64) float rest[3][W];
        for (int64_t i = 0; i < width; i += W) {
            const int64_t lanes = std::min<int64_t>(W, width - i);
            vf gate, up, grad;
            if (lanes == W) {
                gate = load(g + i), up = load(u + i), grad = load(d + i);
            } else {
                std::memset(rest, 0, sizeof rest);
                std::memcpy(rest[0], g + i, lanes * 4), std::memcpy(rest[1], u + i, lanes * 4);
                std::memcpy(rest[2], d + i, lanes * 4);
                gate = load(rest[0]), up = load(rest[1]), grad = load(rest[2]);
            }
            const vf s = sigmoid(gate), silu = gate * s, out = silu * up;
            dot = dot + grad * out;
            grad = grad * w;
            const vf to_gate = grad * up * (s + silu * (1.f - s)), to_up = grad * silu;
            if (lanes == W) {
                store(dg + i, to_gate), store(du + i, to_up), store(to + i, out);
            } else {
                std::memcpy(dg + i, &to_gate, lanes * 4), std::memcpy(du + i, &to_up, lanes * 4);
                std::memcpy(to + i, &out, lanes * 4);
            }
        }
        if (weight) dw[r] = sum_of(dot);
    }
}

// out [T, D] = sum over k of weight[t][k] * y[place[t][k]]; weight null: 1. In order of k.
inline void combine(const float* y, const int64_t* place, const float* weight, int64_t tokens, int64_t top_k, int64_t n,
                    float* out) {
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < tokens; ++t)
        for (int64_t c = 0; c < n; c += W) {
            const int64_t lanes = std::min<int64_t>(W, n - c);
            vf sum = {};
            for (int64_t k = 0; k < top_k; ++k) {
                const float* const from = y + place[t * top_k + k] * n + c;
                const float w = weight ? weight[t * top_k + k] : 1.f;
                if (lanes == W) {
                    sum = sum + splat(w) * load(from);
                } else {
                    for (int64_t i = 0; i < lanes; ++i) sum[i] += w * from[i];
                }
            }
            if (lanes == W) store(out + t * n + c, sum);
            else std::memcpy(out + t * n + c, &sum, lanes * 4);
        }
}

// Logits [rows, n] in place: e^(x - largest of the row); `top` and `sum` [rows] are that largest and the sum of what
// stays. A row passes the cache once.
inline void exp_rows(float* x, int64_t rows, int64_t n, float* top, float* sum) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; ++r) {
        float* const row = x + r * n;
        vf m = splat(-3.0e38f), total = {};
        int64_t i = 0;
        for (; i + W <= n; i += W) m = larger(m, load(row + i));
        float most = largest_lane(m);
        for (; i < n; ++i) most = std::max(most, row[i]);
        for (i = 0; i + W <= n; i += W) {
            const vf e = exp(load(row + i) - splat(most));
            total = total + e;
            store(row + i, e);
        }
        float all = sum_of(total);
        for (; i < n; ++i) all += row[i] = std::exp(row[i] - most);
        top[r] = most, sum[r] = all;
    }
}

// AdamW (kernels/adamw.py) over n values. m and v FP32, or BF16 where `half`.
template <bool HALF>
inline void adamw_as(float* weight, const float* grad, void* m, void* v, int64_t n, const float* c) {
    const float b1 = c[0], b2 = c[1], eps = c[2], lr = c[3], keep = c[4], scale = c[5], fix1 = c[6], fix2 = c[7];
    typedef uint16_t vh __attribute__((vector_size(W * 2)));
#pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < (n + W - 1) / W; ++block) {
        const int64_t i = block * W, lanes = std::min<int64_t>(W, n - i);
        alignas(64) float w_[W] = {}, g_[W] = {}, m_[W] = {}, v_[W] = {};
        vf w, g, mean, square;
        auto half = [&](const void* p) {
            vh h = {};
            std::memcpy(&h, static_cast<const uint16_t*>(p) + i, lanes * 2);
            return (vf)(__builtin_convertvector(h, vu) << 16);
        };
        if (lanes == W) {
            w = load(weight + i), g = load(grad + i);
        } else {
            std::memcpy(w_, weight + i, lanes * 4), std::memcpy(g_, grad + i, lanes * 4);
            w = load(w_), g = load(g_);
        }
        if constexpr (HALF) {
            mean = half(m), square = half(v);
        } else {
            std::memcpy(m_, static_cast<float*>(m) + i, lanes * 4), std::memcpy(v_, static_cast<float*>(v) + i, lanes * 4);
            mean = load(m_), square = load(v_);
        }
        g = g * splat(scale);
        mean = mean * splat(b1) + g * splat(1 - b1);
        square = square * splat(b2) + g * g * splat(1 - b2);
        vf root = square * splat(fix2);
        for (int l = 0; l < W; ++l) root[l] = std::sqrt(root[l]);
        w = w * splat(keep) - splat(lr * fix1) * mean / (root + splat(eps));
        if constexpr (HALF) {
            const vh hm = __builtin_convertvector((vu)to_bf16(mean) >> 16, vh), hv = __builtin_convertvector((vu)to_bf16(square) >> 16, vh);
            std::memcpy(static_cast<uint16_t*>(m) + i, &hm, lanes * 2), std::memcpy(static_cast<uint16_t*>(v) + i, &hv, lanes * 2);
        } else {
            std::memcpy(static_cast<float*>(m) + i, &mean, lanes * 4), std::memcpy(static_cast<float*>(v) + i, &square, lanes * 4);
        }
        std::memcpy(weight + i, &w, lanes * 4);
    }
}

}  // namespace fathom
