// A block for long chunks of prompts: the arithmetic of block.cpp's phases, on the panels of panel.h.
//
// With a hundred tokens and more, time goes into multiplications alone, so everything serves the tiles: matrices are
// prepared panel by panel, attention expands keys and values (prefill_attention.h), activations stay plain FP32 rows.
// Items of a phase are panels of output rows (over all tokens, or parts of them when there are few panels for many
// threads), taken by whichever thread is free. In a mixture an item is a panel of hidden units of one expert, over the
// tokens that chose it; then a panel of output columns, over all experts in order, so sums have one order.
//
// Memory, in floats: T (D + Q + C + R + H (N + R + V) + E + J + K I), and a round of expanded keys (plan.h: 16 MB, or
// one block of 128 keys if that is more). 512 tokens at DeepSeek-V3's full width take about 200 MB.
//
// Legend: see work.h; Q query rank, J width of the dense or shared network.
#pragma once

#include "feed_forward.h"
#include "prefill_attention.h"

namespace fathom {

// ---- buffers --------------------------------------------------------------------------------------------------------

// What the blocks of a call need beyond Sizes, in floats per key.
struct KeySizes {
    int64_t keys = 1, values = 1, nope = 1, query = 1, value = 1;

    void include(const Block& b) {
        keys = std::max(keys, b.heads * (b.nope + b.rope));
        values = std::max(values, b.heads * panels_of(b.value) * PANEL);
        nope = std::max(nope, b.nope);
        query = std::max(query, b.nope + b.rope);
        value = std::max(value, panels_of(b.value) * PANEL);
    }
};

inline float** rows_in(Arena& arena, const Buffer& buffer, int64_t count) {
    float** const rows = arena.take<float*>(count);
    if (arena.base)
        for (int64_t t = 0; t < count; ++t) rows[t] = buffer.row(t);
    return rows;
}

inline void lay_prefill(Arena& arena, const Sizes& z, const KeySizes& k, const Plan& plan, const Buffer& x,
                        int64_t tokens, int threads, Prefill* all) {
    Prefill shared{};
    shared.tokens = tokens;
    shared.plan = &plan;
    const auto buffer = [&](Buffer Work::*field, float** Prefill::*rows, int64_t width) {
        shared.*field = Buffer::of(arena, tokens, width);
        shared.*rows = rows_in(arena, shared.*field, tokens);
    };
    shared.normed[KIND_F32] = Buffer::of(arena, tokens, z.hidden);
    shared.normed_rows = rows_in(arena, shared.normed[KIND_F32], tokens);
    buffer(&Work::q_a, &Prefill::q_a_rows, z.q_rank);
    buffer(&Work::kv, &Prefill::kv_rows, z.kv);
    buffer(&Work::q, &Prefill::q_rows, z.q);
    buffer(&Work::o, &Prefill::o_rows, z.o);
    buffer(&Work::logits, &Prefill::logits_rows, z.experts);
    buffer(&Work::shared_hidden, &Prefill::shared_rows, z.width);
    shared.x_rows = rows_in(arena, x, tokens);
    shared.expert_hidden = Buffer::of(arena, tokens * z.top_k, z.expert_width);
    const int64_t pairs = tokens * std::max<int64_t>(1, z.top_k);
    shared.gates = arena.take<float>(pairs);
    shared.chosen = arena.take<int32_t>(pairs);
    shared.latents = Buffer::of(arena, plan.keys, z.latent);
    shared.rope_keys = Buffer::of(arena, plan.keys, z.rope);
    shared.latent_panels = arena.take<float>(plan.keys * padded(z.latent));
    shared.rope_panels = arena.take<float>(plan.keys * padded(z.rope));
    shared.keys = arena.take<float>(plan.keys * k.keys);
    shared.values = arena.take<float>(plan.keys * k.values);
    shared.top = arena.take<float>(tokens * z.heads);
    shared.sum = arena.take<float>(tokens * z.heads);
    const int64_t widest = std::max({z.hidden, z.q_rank, z.kv, z.experts * 2});
    for (int i = 0; i < threads; ++i) {
        Prefill w = shared;
        w.panel = arena.take<float>(PANEL_SPACE);
        w.gate = Buffer{arena.take<float>(tokens * PANEL), PANEL};
        w.up = Buffer{arena.take<float>(tokens * PANEL), PANEL};
        w.gate_rows = rows_in(arena, w.gate, tokens);
        w.up_rows = rows_in(arena, w.up, tokens);
        w.up_k = Buffer::of(arena, k.nope, z.latent);
        w.up_k_rows = arena.take<float*>(k.nope);
        w.key_rows = arena.take<float*>(k.nope);
        w.query = Buffer::of(arena, QUERIES, k.query);
        w.score = Buffer::of(arena, QUERIES, KEY_BLOCK);
        w.mixed = Buffer::of(arena, QUERIES, k.value);
        w.rows = Buffer::of(arena, 2, widest);
        w.more_rows = Buffer::of(arena, 2, widest);
        w.pairs = arena.take<int32_t>(pairs);
        w.expert_start = arena.take<int32_t>(z.experts + 2);
        w.active = arena.take<int32_t>(z.experts);
        w.hidden_rows = arena.take<float*>(pairs);
        w.out = arena.take<float*>(pairs);
        w.expert_x = arena.take<const float*>(pairs);
        all[i] = w;
    }
}

// ---- phases ---------------------------------------------------------------------------------------------------------

// Into how many parts tokens go when a phase has this many panels: enough items for all threads.
inline int64_t token_parts(const Prefill& w, int64_t panels) {
    const int64_t wanted = (4 * w.team.threads + panels - 1) / std::max<int64_t>(1, panels);
    return w.team.threads == 1 ? 1 : std::max<int64_t>(1, std::min(wanted, w.tokens / 64));
}

struct Product {
    const Matrix* m;
    float** x;
    float** y;
    bool add, room;
};

// One panel of a product over tokens low .. high.
inline void product_item(const Prefill& w, const Product& p, int64_t panel, int64_t low, int64_t high) {
    const int64_t first = panel * PANEL, n = std::min<int64_t>(PANEL, p.m->rows - first);
    multiply(*p.m, first, n, high - low, p.x + low, p.y + low, first, p.add, p.room, w.panel, first + PANEL);
}

// Products side by side, to the end of the phase.
inline void products(Prefill& w, const Product& one, const Product* other = nullptr) {
    const int64_t edge = panels_of(one.m->rows), panels = edge + (other ? panels_of(other->m->rows) : 0);
    const int64_t parts = token_parts(w, panels);
    for (int64_t i = w.take(); i < panels * parts; i = w.take()) {
        const int64_t panel = i / parts, part = i % parts;
        const int64_t low = w.tokens * part / parts, high = w.tokens * (part + 1) / parts;
        if (panel < edge) product_item(w, one, panel, low, high);
        else product_item(w, *other, panel - edge, low, high);
    }
    w.next();
}

// y[t][at ..] = silu(gate x[t]) * (up x[t]) for n <= PANEL hidden units; times the gate of pairs[t] if there are pairs.
inline void swiglu_item(const Prefill& w, const Matrix& gate, int64_t gate_row, const Matrix& up, int64_t up_row,
                        int64_t n, int64_t tokens, const float* const* x, const int32_t* pairs, float* const* y,
                        int64_t at) {
    multiply(gate, gate_row, n, tokens, x, w.gate_rows, 0, false, true, w.panel, gate_row + PANEL);
    multiply(up, up_row, n, tokens, x, w.up_rows, 0, false, true, w.panel, up_row + PANEL);
    for (int64_t t = 0; t < tokens; ++t) {
        const float factor = pairs ? w.gates[pairs[t]] : 1.f;
        for (int i = 0; i < PANEL; i += W) {
            const vf g = load(w.gate.row(t) + i);
            store(y[t] + at + i, g * sigmoid(g) * (load(w.up.row(t) + i) * factor));
        }
    }
}

inline void prefill_attention(const Block& b, const Pool& p, const Step& step, Prefill& w, const Buffer& x) {
    w.each_token([&](int64_t t) {
        rms_norm(x.row(t), nullptr, b.input_norm, b.norm_eps, b.hidden, w.normed[KIND_F32].row(t));
    });
    const Product kv{&b.kv_a, w.normed_rows, w.kv_rows, false, true};
    if (b.q_a.data) products(w, {&b.q_a, w.normed_rows, w.q_a_rows, false, true}, &kv);
    else products(w, {&b.q_b, w.normed_rows, w.q_rows, false, true}, &kv);
    w.each_token([&](int64_t t) {
        store_latent(b, p, step, w, t);
        if (b.q_a.data) rms_norm(w.q_a.row(t), b.q_a_bias, b.q_a_norm, b.latent_eps, b.q_a.rows, w.q_a.row(t));
    });
    if (b.q_a.data) products(w, {&b.q_b, w.q_a_rows, w.q_rows, false, true});
    attend_rounds(b, p, step, w);
    products(w, {&b.o, w.o_rows, w.x_rows, true, b.hidden % PANEL == 0});
}

// Router logits, and the hidden units of the dense or shared network.
inline void prefill_hidden(const Block& b, Prefill& w) {
    const int64_t edge = b.router.data ? panels_of(b.experts) : 0, width = b.down.data ? b.down.cols : 0;
    const int64_t panels = edge + panels_of(width), parts = token_parts(w, panels);
    for (int64_t i = w.take(); i < panels * parts; i = w.take()) {
        const int64_t panel = i / parts, part = i % parts;
        const int64_t low = w.tokens * part / parts, high = w.tokens * (part + 1) / parts;
        if (panel < edge) {
            product_item(w, {&b.router, w.normed_rows, w.logits_rows, false, true}, panel, low, high);
            continue;
        }
        const int64_t first = (panel - edge) * PANEL, n = std::min<int64_t>(PANEL, width - first);
        swiglu_item(w, b.gate, first, b.up, first, n, high - low, w.normed_rows + low, nullptr, w.shared_rows + low,
                    first);
    }
    w.next();
}

// Hidden units of the routed experts, weighted; row i belongs to pair number i in order of experts.
inline void prefill_experts(const Block& b, Prefill& w) {
    const int64_t width = b.expert_down.cols, panels = panels_of(width);
    for (int64_t i = w.take(); i < w.active_count * panels; i = w.take()) {
        const int64_t e = w.active[i / panels], start = w.expert_start[e], count = w.expert_start[e + 1] - start;
        const int64_t first = i % panels * PANEL, n = std::min<int64_t>(PANEL, width - first);
        const Matrix m = b.gate_up.of_expert(e);
        swiglu_item(w, m, first, m, width + first, n, count, w.expert_x + start, w.pairs + start,
                    w.hidden_rows + start, first);
    }
    w.next();
}

// x += everything the hidden units give; a panel is summed up in this thread's memory first.
inline void prefill_down(const Block& b, Prefill& w) {
    for (int64_t i = w.take(); i < panels_of(b.hidden); i = w.take()) {
        const int64_t first = i * PANEL, n = std::min<int64_t>(PANEL, b.hidden - first);
        if (b.down.data)
            multiply(b.down, first, n, w.tokens, w.shared_rows, w.gate_rows, 0, false, true, w.panel, first + PANEL);
        else std::memset(w.gate.data, 0, w.tokens * PANEL * sizeof(float));
        for (int64_t a = 0; b.router.data && a < w.active_count; ++a) {
            const int64_t e = w.active[a], start = w.expert_start[e];
            const int64_t next = a + 1 < w.active_count ? w.active[a + 1] - e : 0;
            multiply(b.expert_down.of_expert(e), first, n, w.expert_start[e + 1] - start, w.hidden_rows + start,
                     w.out + start, 0, true, true, w.panel, first + next * b.hidden);
        }
        for (int64_t t = 0; t < w.tokens; ++t)
            for (int64_t r = 0; r < n; ++r) w.x_rows[t][first + r] += w.gate.row(t)[r];
    }
    w.next();
}

inline void prefill_feed_forward(const Block& b, Prefill& w, const Buffer& x, int64_t* chosen) {
    w.each_token([&](int64_t t) {
        if (b.o_bias)
            for (int64_t i = 0; i < b.hidden; ++i) x.row(t)[i] += b.o_bias[i];
        rms_norm(x.row(t), nullptr, b.post_norm, b.norm_eps, b.hidden, w.normed[KIND_F32].row(t));
    });
    prefill_hidden(b, w);
    if (b.router.data) {
        w.each_token([&](int64_t t) { route(b, w, t); });
        sort_pairs(b, w);
        if (chosen && w.team.id == 0) std::copy_n(w.chosen, w.tokens * b.top_k, chosen);
        for (int64_t i = 0; i < w.tokens * b.top_k; ++i) {
            const int64_t t = w.pairs[i] / b.top_k;
            w.expert_x[i] = w.normed[KIND_F32].row(t);
            w.hidden_rows[i] = w.expert_hidden.row(i);
            w.out[i] = w.gate.row(t);
        }
        prefill_experts(b, w);
    }
    prefill_down(b, w);
}

}  // namespace fathom
