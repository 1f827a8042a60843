// The structures that cross the C interface (mirrored field by field in structs.py), and a thread's work buffers.
//
// Up to FEW tokens, every thread normalises and lays out all tokens for itself: cheaper than one more barrier. Above
// that the tokens are shared out and the buffers are common.
//
// Legend: T tokens, D hidden, H heads, N nope, R rope, V value width, C latent, E experts, K experts per token,
// I expert width.
#pragma once

#include "team.h"

namespace fathom {

struct Block {
    int64_t hidden, heads, nope, rope, value, latent;
    Matrix q_a, q_b, kv_a, kv_b, o;  // q_a.data null: no query compression
    const float *input_norm, *post_norm, *q_a_norm, *kv_a_norm;
    const float *q_a_bias, *kv_a_bias, *o_bias;  // null: none
    Matrix gate, up, down;                       // dense or shared expert; data null: none
    Matrix router, gate_up, expert_down;         // router.data null: a dense block
    const float* router_bias;
    int64_t experts, top_k, groups, kept_groups;
    int32_t sigmoid, normalise;
    float route_scale, scale, norm_eps, latent_eps;
};

struct Pool {
    void* latent;
    void* k_rope;
    float* scale;
    int64_t pages, page_size;
    int32_t latent_kind, rope_kind;
};

struct Step {
    int64_t tokens, sequences, pages_per_sequence, first_key;
    const int32_t* rows;
    const int64_t* slots;
    const int32_t* last_key;
    const int32_t* page_table;
    const float *cos, *sin;  // [T, R / 2]
};

constexpr int64_t FEW = 4;
constexpr int64_t LATENT_TILE = 128;  // values of a cached FP8 latent that share a scale

// Widths of all work buffers: the largest over the blocks of a call.
struct Sizes {
    int64_t hidden = 0, q_rank = 0, kv = 0, q = 0, heads = 0, latent = 0, rope = 0, o = 0, experts = 0, top_k = 0,
            width = 0, expert_width = 0;

    void include(const Block& b) {
        auto grow = [](int64_t& size, int64_t value) { size = std::max(size, value); };
        grow(hidden, b.hidden);
        grow(q_rank, b.q_a.data ? b.q_a.rows : 0);
        grow(kv, b.latent + b.rope);
        grow(q, b.heads * (b.nope + b.rope));
        grow(heads, b.heads);
        grow(latent, b.latent);
        grow(rope, b.rope);
        grow(o, b.heads * b.value);
        grow(experts, b.experts);
        grow(top_k, b.top_k);
        grow(width, b.down.data ? b.down.cols : 0);
        grow(expert_width, b.router.data ? b.expert_down.cols : 0);
    }
};

// [T, width] with padded rows.
struct Buffer {
    float* data = nullptr;
    int64_t stride = 0;

    float* row(int64_t t) const { return data + t * stride; }
    static Buffer of(Arena& arena, int64_t rows, int64_t width) {
        return {arena.take<float>(rows * padded(width)), padded(width)};
    }
};

struct Work {
    Team team;
    int64_t tokens;
    // one row per token
    Buffer normed[3];  // by kind: the layout of what reads it
    Buffer q_a, q_latent, kv, q, o, o_laid, logits, shared_hidden;
    float* gates;      // [T, K]
    int32_t* chosen;   // [T, K]
    // one row per (token, head)
    Buffer query, query_rope;
    // one row per (token, head, stored part of its keys): see attention.h
    Buffer part;
    float *part_top, *part_sum;
    int64_t parts;  // stored per token and head; 1: already put together
    // one row per (token, slot)
    Buffer expert_hidden;
    // this thread's own
    Buffer rows;  // TOKENS rows, wide enough for anything
    Buffer more_rows;
    int32_t *pairs, *expert_start;  // (token, slot) pairs in order of experts; expert e has start[e] .. start[e + 1]
    int32_t* active;                // experts with at least one token
    int64_t active_count;
    const float** in;               // pointers to rows of activations, one per pair
    float** out;
    float *factors, *ones;

    bool few() const { return tokens <= FEW; }

    // f(t) for every token, before any thread goes on to read what it wrote.
    template <class F>
    void each_token(F f) const {
        int64_t low = 0, high = tokens;
        if (!few()) team.part(tokens, 1, low, high);
        for (int64_t t = low; t < high; ++t) f(t);
        if (!few()) team.wait();
    }
    const float* const* rows_of(const Buffer& buffer) const {
        for (int64_t t = 0; t < tokens; ++t) in[t] = buffer.row(t);
        return in;
    }
    float* const* outputs(const Buffer& buffer, int64_t column) const {
        for (int64_t t = 0; t < tokens; ++t) out[t] = buffer.row(t) + column;
        return out;
    }
};

// Buffers for `threads` threads, in `arena`.
inline void lay_work(Arena& arena, const Sizes& z, int64_t tokens, int64_t parts, int threads, Work* all) {
    Work shared{};
    shared.tokens = tokens;
    shared.kv = Buffer::of(arena, tokens, z.kv);
    shared.q_a = Buffer::of(arena, tokens, z.q_rank);
    shared.q = Buffer::of(arena, tokens, z.q);
    shared.o = Buffer::of(arena, tokens, z.o);
    shared.logits = Buffer::of(arena, tokens, z.experts);
    shared.shared_hidden = Buffer::of(arena, tokens, z.width);
    shared.query = Buffer::of(arena, tokens * z.heads, z.latent);
    shared.query_rope = Buffer::of(arena, tokens * z.heads, z.rope);
    shared.parts = parts;
    shared.part = Buffer::of(arena, tokens * z.heads * parts, z.latent);
    shared.part_top = arena.take<float>(tokens * z.heads * parts);
    shared.part_sum = arena.take<float>(tokens * z.heads * parts);
    shared.expert_hidden = Buffer::of(arena, tokens * z.top_k, z.expert_width);
    const int64_t pairs = tokens * std::max<int64_t>(1, z.top_k);
    const int64_t widest = std::max({z.hidden, z.q_rank, z.kv, z.latent, z.o, z.experts * 2, z.rope});
    for (int i = 0; i < threads; ++i) {
        Work w = shared;
        const bool own = i == 0 || shared.few();
        auto common = [&](Buffer Work::*field, int64_t width) {
            w.*field = own ? Buffer::of(arena, tokens, width) : all[0].*field;
        };
        for (int kind = 0; kind < 3; ++kind)
            w.normed[kind] = own ? Buffer::of(arena, tokens, z.hidden) : all[0].normed[kind];
        common(&Work::q_latent, z.q_rank);
        common(&Work::o_laid, z.o);
        w.gates = own ? arena.take<float>(pairs) : all[0].gates;
        w.chosen = own ? arena.take<int32_t>(pairs) : all[0].chosen;
        w.rows = Buffer::of(arena, TOKENS, widest);
        w.more_rows = Buffer::of(arena, TOKENS, widest);
        w.pairs = arena.take<int32_t>(pairs);
        w.expert_start = arena.take<int32_t>(z.experts + 2);
        w.active = arena.take<int32_t>(z.experts);
        w.in = arena.take<const float*>(pairs);
        w.out = arena.take<float*>(pairs);
        w.factors = arena.take<float>(pairs);
        w.ones = arena.take<float>(pairs);
        if (arena.base)
            for (int64_t t = 0; t < pairs; ++t) w.ones[t] = 1;
        all[i] = w;
    }
}

// y = (x + bias) / rms * gain
inline void rms_norm(const float* x, const float* bias, const float* gain, float eps, int64_t n, float* y) {
    float sum = 0;
    if (bias) {
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) y[i] = x[i] + bias[i];
        x = y;
    }
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; ++i) sum += x[i] * x[i];
    const float inverse = 1.f / __builtin_sqrtf(sum / static_cast<float>(n) + eps);
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[i] = x[i] * inverse * gain[i];
}

// Norm of one token into w.normed, in the layout of every kind in `kinds` (a bit each); FP32's is always made.
inline void norm_token(const Work& w, int64_t t, const float* x, const float* gain, float eps, int64_t n,
                       unsigned kinds) {
    float* const plain = w.normed[KIND_F32].row(t);
    rms_norm(x, nullptr, gain, eps, n, plain);
    for (int64_t i = n; i % W; ++i) plain[i] = 0;
    for (int32_t kind : {KIND_BF16, KIND_FP8})
        if (kinds >> kind & 1) layout(kind, plain, n, 1, w.normed[kind].row(t));
}

}  // namespace fathom
