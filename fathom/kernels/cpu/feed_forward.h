// SwiGLU, dense or as a mixture of experts: router, routed experts, shared expert.
//
//   s = sigmoid(x W_g) or softmax;  sel = s + b chooses, s weighs
//   groups: the kept_groups with the largest top-2 sum of sel (without b: largest sel) stay
//   y = sum over chosen g_e down_e(silu(gate_e x) * up_e x)  +  down(silu(gate x) * up x)
//
// Pairs (token, slot) are sorted by expert, so an expert's weights are read once per step however many tokens chose it.
// Gate and up: items are chunks of hidden units, taken by whichever thread is free. Down: every thread owns a range of
// output rows and adds all experts' shares to it, so nothing needs to be added up between threads.
#pragma once

#include "work.h"

namespace fathom {

constexpr int64_t CHUNK = PAD;  // hidden units of an item; whole groups, so that a chunk can be laid out by itself
constexpr int64_t TOKEN_BLOCK = 32;
constexpr int64_t ROUTER_CHUNK = 32;

// h[s] = silu(gate x) * (up x) for n <= CHUNK hidden units, laid out for a down matrix of `kind`.
inline void swiglu(const Matrix& gate, int64_t gate_row, const Matrix& up, int64_t up_row, int64_t n, int64_t tokens,
                   const float* const* x_gate, const float* const* x_up, int32_t kind, float* const* h) {
    alignas(64) float g[TOKEN_BLOCK][CHUNK], u[TOKEN_BLOCK][CHUNK];
    float *to_g[TOKEN_BLOCK], *to_u[TOKEN_BLOCK];
    for (int64_t t = 0; t < tokens; t += TOKEN_BLOCK) {
        const int64_t count = std::min(TOKEN_BLOCK, tokens - t);
        for (int64_t s = 0; s < count; ++s) to_g[s] = g[s], to_u[s] = u[s];
        linear(gate, gate_row, gate_row + n, count, x_gate + t, to_g);
        linear(up, up_row, up_row + n, count, x_up + t, to_u);
        for (int64_t s = 0; s < count; ++s) {
            for (int64_t i = n; i % W; ++i) g[s][i] = u[s][i] = 0;
            for (int64_t i = 0; i < n; i += W) {
                const vf value = load(g[s] + i);
                store(u[s] + i, value * sigmoid(value) * load(u[s] + i));
            }
            layout(kind, u[s], n, 1, h[t + s]);
        }
    }
}

// ---- routing --------------------------------------------------------------------------------------------------------

// Index of the largest value not taken yet; the lowest of equals.
inline int64_t best_of(const float* values, const bool* taken, int64_t n) {
    int64_t best = -1;
    for (int64_t i = 0; i < n; ++i)
        if (!taken[i] && (best < 0 || values[i] > values[best])) best = i;
    return best;
}

// choice: -infinity for experts outside the kept groups.
inline void limit_groups(const Block& b, float* choice) {
    const int64_t size = b.experts / b.groups;
    float scores[256];
    bool kept[256] = {};
    for (int64_t g = 0; g < b.groups; ++g) {
        float first = -__builtin_inff(), second = first;
        for (int64_t i = 0; i < size; ++i) {
            const float v = choice[g * size + i];
            if (v > first) second = first, first = v;
            else if (v > second) second = v;
        }
        scores[g] = b.router_bias ? first + second : first;
    }
    for (int64_t i = 0; i < b.kept_groups; ++i) kept[best_of(scores, kept, b.groups)] = true;
    for (int64_t e = 0; e < b.experts; ++e)
        if (!kept[e / size]) choice[e] = -__builtin_inff();
}

// Token t's experts and gates from its logits.
inline void route(const Block& b, const Work& w, int64_t t) {
    const int64_t n = b.experts;
    float *const score = w.rows.row(0), *const choice = w.more_rows.row(0);
    bool* const taken = reinterpret_cast<bool*>(w.more_rows.row(1));
    std::memcpy(score, w.logits.row(t), n * sizeof(float));
    for (int64_t i = n; i % W; ++i) score[i] = -__builtin_inff();
    if (b.sigmoid) {
        for (int64_t i = 0; i < n; i += W) store(score + i, sigmoid(load(score + i)));
    } else {
        const float top = *std::max_element(score, score + n);
        float sum = 0;
        for (int64_t i = 0; i < n; i += W) store(score + i, exp(load(score + i) - top));
        for (int64_t i = 0; i < n; ++i) sum += score[i];
        for (int64_t i = 0; i < n; ++i) score[i] /= sum;
    }
    for (int64_t i = 0; i < n; ++i) choice[i] = b.router_bias ? score[i] + b.router_bias[i] : score[i];
    if (b.groups > 1) limit_groups(b, choice);
    std::memset(taken, 0, n);
    int32_t* const chosen = w.chosen + t * b.top_k;
    float *const gates = w.gates + t * b.top_k, sum = 0;
    for (int64_t k = 0; k < b.top_k; ++k) {
        chosen[k] = static_cast<int32_t>(best_of(choice, taken, n));
        taken[chosen[k]] = true;
        gates[k] = score[chosen[k]];
        sum += gates[k];
    }
    const float factor = b.route_scale / (b.normalise ? sum + 1e-20f : 1.f);
    for (int64_t k = 0; k < b.top_k; ++k) gates[k] *= factor;
}

// Counting sort of the pairs by expert.
inline void sort_pairs(const Block& b, Work& w) {
    const int64_t pairs = w.tokens * b.top_k;
    int32_t* const start = w.expert_start;
    std::memset(start, 0, (b.experts + 2) * sizeof(int32_t));
    for (int64_t i = 0; i < pairs; ++i) ++start[w.chosen[i] + 2];
    w.active_count = 0;
    for (int64_t e = 0; e < b.experts; ++e) {
        if (start[e + 2]) w.active[w.active_count++] = static_cast<int32_t>(e);
        start[e + 2] += start[e + 1];
    }
    for (int64_t i = 0; i < pairs; ++i) w.pairs[start[w.chosen[i] + 1]++] = static_cast<int32_t>(i);
}

// ---- phases ---------------------------------------------------------------------------------------------------------

// Router logits, and the hidden units of the dense or shared feed-forward network.
inline void feed_forward_in(const Block& b, const Work& w) {
    const int64_t width = b.down.data ? b.down.cols : 0;
    const int64_t router_items = b.router.data ? (b.experts + ROUTER_CHUNK - 1) / ROUTER_CHUNK : 0;
    const int64_t items = router_items + (width + CHUNK - 1) / CHUNK;
    for (int64_t item = w.team.take(FEED_FORWARD); item < items; item = w.team.take(FEED_FORWARD)) {
        if (item < router_items) {
            const int64_t low = item * ROUTER_CHUNK, high = std::min(low + ROUTER_CHUNK, b.experts);
            linear(b.router, low, high, w.tokens, w.rows_of(w.normed[KIND_F32]), w.outputs(w.logits, low));
            continue;
        }
        const int64_t low = (item - router_items) * CHUNK, n = std::min(CHUNK, width - low);
        const float* x_up[TOKEN_BLOCK];
        for (int64_t t = 0; t < w.tokens; t += TOKEN_BLOCK) {
            const int64_t count = std::min(TOKEN_BLOCK, w.tokens - t);
            for (int64_t s = 0; s < count; ++s) {
                w.in[s] = w.normed[b.gate.kind].row(t + s);
                x_up[s] = w.normed[b.up.kind].row(t + s);
                w.out[s] = w.shared_hidden.row(t + s) + low;
            }
            swiglu(b.gate, low, b.up, low, n, count, w.in, x_up, b.down.kind, w.out);
        }
    }
}

// Hidden units of the routed experts.
inline void experts_in(const Block& b, const Work& w) {
    const int64_t width = b.expert_down.cols, chunks = (width + CHUNK - 1) / CHUNK;
    const Buffer& x = w.normed[b.gate_up.kind];
    for (int64_t item = w.team.take(EXPERTS); item < w.active_count * chunks; item = w.team.take(EXPERTS)) {
        const int64_t e = w.active[item / chunks], low = item % chunks * CHUNK, n = std::min(CHUNK, width - low);
        const int64_t first = w.expert_start[e], count = w.expert_start[e + 1] - first;
        for (int64_t i = 0; i < count; ++i) {
            w.in[i] = x.row(w.pairs[first + i] / b.top_k);
            w.out[i] = w.expert_hidden.row(w.pairs[first + i]) + low;
        }
        const Matrix m = b.gate_up.of_expert(e);
        swiglu(m, low, m, width + low, n, count, w.in, w.in, b.expert_down.kind, w.out);
    }
}

// x += everything the hidden units give, for this thread's rows of x.
inline void feed_forward_out(const Block& b, const Work& w, const Buffer& x) {
    int64_t low, high;
    w.team.part(b.hidden, 8, low, high);
    if (b.down.data)
        linear(b.down, low, high, w.tokens, w.rows_of(w.shared_hidden), w.outputs(x, low), w.ones);
    for (int64_t a = 0; b.router.data && a < w.active_count; ++a) {
        const int64_t e = w.active[a], first = w.expert_start[e], count = w.expert_start[e + 1] - first;
        for (int64_t i = 0; i < count; ++i) {
            const int32_t pair = w.pairs[first + i];
            w.in[i] = w.expert_hidden.row(pair);
            w.out[i] = x.row(pair / b.top_k) + low;
            w.factors[i] = w.gates[pair];
        }
        linear(b.expert_down.of_expert(e), low, high, count, w.in, w.out, w.factors);
    }
}

}  // namespace fathom
