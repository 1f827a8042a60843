// The C interface of the training kernels; Python's side is train.py. Everything returns 0, or 1 when memory ran out.
#include "fp8_gemm.h"
#include "train_attention.h"
#include "train_pointwise.h"
#include "train_rows.h"

using namespace fathom;

namespace {
int64_t tiles(int64_t n) { return (n + TILE_K - 1) / TILE_K; }
}  // namespace

extern "C" {

int fathom_quantise_tiles(const float* x, int64_t rows, int64_t n, int power, uint8_t* q, float* scale) {
    quantise_tiles(x, rows, n, power, q, scale);
    return 0;
}

int fathom_quantise_columns(const float* x, int64_t n, const int64_t* spans, int64_t count, int power, uint8_t* q,
                            float* scale) {
    quantise_columns(x, n, spans, count, power, q, scale);
    return 0;
}

int fathom_retile(const uint8_t* from, const float* from_scale, int64_t n, const int64_t* spans, int64_t count,
                  int power, uint8_t* q, float* scale) {
    retile(from, from_scale, n, spans, count, power, q, scale);
    return 0;
}

int fathom_quantise_blocks(const float* w, int64_t experts, int64_t rows, int64_t n, int power, uint8_t* q,
                           float* scale) {
    quantise_blocks(w, experts, rows, n, power, q, scale);
    return 0;
}

// Y [T, N] = X [T, K] . W [E, N, K]^T, expert e on tokens ends[e - 1] .. ends[e].
int fathom_fprop(const uint8_t* x, const float* x_scale, const uint8_t* w, const float* w_scale, const int64_t* ends,
                 int64_t experts, int64_t n, int64_t k, float* y) {
    for (int64_t e = 0, first = 0; e < experts; first = ends[e++]) {
        const int64_t count = ends[e] - first;
        if (count == 0) continue;
        const Side a{x + first * k, k, 1, x_scale + first * tiles(k), 1, tiles(k), 1};
        const Side b{w + e * n * k, k, 1, w_scale + e * tiles(n) * tiles(k), TILE_K, tiles(k), 1};
        if (!fp8_product(a, b, count, n, k, y + first * n, n)) return 1;
    }
    return 0;
}

// dX [T, K] = dY [T, N] . W [E, N, K].
int fathom_dgrad(const uint8_t* dy, const float* dy_scale, const uint8_t* w, const float* w_scale, const int64_t* ends,
                 int64_t experts, int64_t n, int64_t k, float* dx) {
    for (int64_t e = 0, first = 0; e < experts; first = ends[e++]) {
        const int64_t count = ends[e] - first;
        if (count == 0) continue;
        const Side a{dy + first * n, n, 1, dy_scale + first * tiles(n), 1, tiles(n), 1};
        const Side b{w + e * n * k, 1, k, w_scale + e * tiles(n) * tiles(k), TILE_K, 1, tiles(k)};
        if (!fp8_product(a, b, count, k, n, dx + first * k, k)) return 1;
    }
    return 0;
}

// dW [E, N, K] += dY [T, N]^T . X [T, K]; column tiles of 128 tokens start anew at each expert.
int fathom_wgrad(const uint8_t* dy, const float* dy_scale, const uint8_t* x, const float* x_scale, const int64_t* ends,
                 int64_t experts, int64_t n, int64_t k, float* grad) {
    static thread_local Memory memory;
    float* const sum = reinterpret_cast<float*>(memory.at_least(n * k * 4));
    if (!sum) return 1;
    for (int64_t e = 0, first = 0, row = 0; e < experts; first = ends[e++]) {
        const int64_t count = ends[e] - first;
        if (count == 0) continue;
        const Side a{dy + first * n, 1, n, dy_scale + row * n, 1, 1, n};
        const Side b{x + first * k, 1, k, x_scale + row * k, 1, 1, k};
        if (!fp8_product(a, b, n, k, count, sum, k)) return 1;
        row += tiles(count);
        float* const to = grad + e * n * k;
#pragma omp parallel for simd schedule(static)
        for (int64_t i = 0; i < n * k; ++i) to[i] += sum[i];
    }
    return 0;
}

int fathom_attention_forward(const Attention* a) {
    return attention_heads(*a, attention_forward_head) ? 0 : 1;
}

int fathom_attention_backward(const Attention* a) {
    return attention_heads(*a, attention_backward_head) ? 0 : 1;
}

int fathom_round_bf16(const float* x, int64_t n, float* y) {
    round_bf16(x, n, y);
    return 0;
}

int fathom_round_e5m6(const float* x, int64_t rows, int64_t n, float* y) {
    round_e5m6(x, rows, n, y);
    return 0;
}

int fathom_swiglu(const float* h, int64_t rows, int64_t width, float* a) {
    swiglu(h, rows, width, a);
    return 0;
}

int fathom_swiglu_backward(const float* h, const float* da, const float* weight, int64_t rows, int64_t width, float* dh,
                           float* a, float* dw) {
    swiglu_backward(h, da, weight, rows, width, dh, a, dw);
    return 0;
}

int fathom_combine(const float* y, const int64_t* place, const float* weight, int64_t tokens, int64_t top_k, int64_t n,
                   float* out) {
    combine(y, place, weight, tokens, top_k, n, out);
    return 0;
}

int fathom_exp_rows(float* x, int64_t rows, int64_t n, float* top, float* sum) {
    exp_rows(x, rows, n, top, sum);
    return 0;
}

int fathom_rms_norm(const float* x, int64_t stride, const float* weight, int64_t rows, int64_t n, float eps, float* y,
                    float* inverse) {
    rms_norm(x, stride, weight, rows, n, eps, y, inverse);
    return 0;
}

int fathom_rms_norm_backward(const float* dy, const float* x, int64_t stride, const float* weight, const float* inverse,
                             int64_t rows, int64_t n, float* dx, float* dw) {
    try {
        rms_norm_backward(dy, x, stride, weight, inverse, rows, n, dx, dw);
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

// shape: sequences, tokens, heads, width; strides of the first three axes of x.
int fathom_rotate(const float* x, const int64_t* shape, const int64_t* strides, const float* cos, const float* sin,
                  int shared, float sign, float* y) {
    rotate(x, strides, shape[0], shape[1], shape[2], shape[3], cos, sin, shared, sign, y);
    return 0;
}

int fathom_take_rows(const char* x, int64_t bytes, const int64_t* index, int64_t count, char* out) {
    take_rows(x, bytes, index, count, out);
    return 0;
}

// constants: beta1, beta2, eps, lr, 1 - lr * decay, gradient scale, 1 / (1 - beta1^t), 1 / (1 - beta2^t).
int fathom_adamw(float* weight, const float* grad, void* m, void* v, int64_t n, int half, const float* constants) {
    if (half) adamw_as<true>(weight, grad, m, v, n, constants);
    else adamw_as<false>(weight, grad, m, v, n, constants);
    return 0;
}

}  // extern "C"
