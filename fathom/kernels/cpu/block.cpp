// The C interface: whole transformer blocks, the latents alone, and one matrix.
//
// A call is one parallel region. Its blocks run one after another, each in phases with a barrier between:
//   1  norm; q_a and kv_a (without query compression q itself)
//   2  latents into the pages; per head: q_b, rotation, absorption of W^UK
//   3  attention over the pages
//   4  per head: parts put together, W^UV
//   5  o, added to x
//   6  norm; router; gate and up of the dense or shared network
//   7  routing; gate and up of the chosen experts                    (mixture of experts only)
//   8  down of everything, added to x
// Long chunks of prompts go through the same steps on other products and another attention: plan.h says which tokens
// do, prefill.h how. In a step that has both, the chunks go first, through all blocks, then the others.
// x is the residual stream: the caller's output tensor, updated in place. Every function returns 0, or what was wrong.
#include <omp.h>

#include "prefill.h"

namespace fathom {
namespace {

thread_local Memory memory;

enum Status : int { OK = 0, BAD_INDEX = 1, NO_MEMORY = 2 };

// Nothing outside the pool or the page table is ever touched: all indices of a step are looked at first.
Status check(const Step& step, const Pool* pools, int64_t count, bool reads) {
    for (int64_t i = 0; i < count; ++i) {
        const Pool& p = pools[i];
        for (int64_t t = 0; t < step.tokens; ++t)
            if (step.slots[t] < 0 || step.slots[t] >= p.pages * p.page_size) return BAD_INDEX;
        if (!reads || (i && p.pages == pools[0].pages && p.page_size == pools[0].page_size)) continue;
        for (int64_t t = 0; t < step.tokens; ++t) {
            const int64_t row = step.rows[t], keys = step.last_key[t];
            if (row < 0 || row >= step.sequences) return BAD_INDEX;
            if (keys < 0 || keys > step.pages_per_sequence * p.page_size) return BAD_INDEX;
            if (t && row == step.rows[t - 1] && keys <= step.last_key[t - 1]) continue;  // looked at already
            const int32_t* const pages = step.page_table + row * step.pages_per_sequence;
            for (int64_t page = step.first_key / p.page_size; page * p.page_size < keys; ++page)
                if (pages[page] < 0 || pages[page] >= p.pages) return BAD_INDEX;
        }
    }
    return OK;
}

// Rows of two matrices that read the same tokens, shared out as if they were one.
void linear_pair(const Work& w, const Matrix& first, const Buffer& y_first, const Matrix& second,
                 const Buffer& y_second) {
    int64_t low, high;
    w.team.part(first.rows + second.rows, 8, low, high);
    const int64_t edge = first.rows;
    if (low < edge) {
        const int64_t end = std::min(high, edge);
        linear(first, low, end, w.tokens, w.rows_of(w.normed[first.kind]), w.outputs(y_first, low));
    }
    if (high > edge) {
        const int64_t begin = std::max(low, edge) - edge;
        linear(second, begin, high - edge, w.tokens, w.rows_of(w.normed[second.kind]), w.outputs(y_second, begin));
    }
}

void attention(const Block& b, const Pool& p, const Step& step, const Work& w, const Buffer& x) {
    const Matrix& q_in = b.q_a.data ? b.q_a : b.q_b;
    w.team.rewind(ATTENTION);
    w.each_token([&](int64_t t) {
        norm_token(w, t, x.row(t), b.input_norm, b.norm_eps, b.hidden, 1u << q_in.kind | 1u << b.kv_a.kind);
    });
    linear_pair(w, q_in, b.q_a.data ? w.q_a : w.q, b.kv_a, w.kv);
    w.team.wait();

    w.team.rewind(FEED_FORWARD);
    w.team.rewind(EXPERTS);
    int64_t low, high;
    w.team.part(w.tokens, 1, low, high);
    for (int64_t t = low; t < high; ++t) store_latent(b, p, step, w, t);
    if (b.q_a.data)
        w.each_token([&](int64_t t) {
            rms_norm(w.q_a.row(t), b.q_a_bias, b.q_a_norm, b.latent_eps, b.q_a.rows, w.rows.row(0));
            layout(b.q_b.kind, w.rows.row(0), b.q_a.rows, 1, w.q_latent.row(t));
        });
    w.team.part(b.heads, 1, low, high);
    for (int64_t head = low; head < high; ++head) head_queries(b, p, step, w, head);
    w.team.wait();

    attend_all(b, p, step, w);
    w.team.wait();

    for (int64_t head = low; head < high; ++head) head_values(b, p, w, head);
    w.team.wait();

    w.each_token([&](int64_t t) { layout(b.o.kind, w.o.row(t), b.o.cols, 1, w.o_laid.row(t)); });
    w.team.part(b.hidden, 8, low, high);
    linear(b.o, low, high, w.tokens, w.rows_of(w.o_laid), w.outputs(x, low), w.ones);
    if (b.o_bias)
        for (int64_t t = 0; t < w.tokens; ++t)
            for (int64_t i = low; i < high; ++i) x.row(t)[i] += b.o_bias[i];
    w.team.wait();
}

void feed_forward(const Block& b, Work& w, const Buffer& x, int64_t* chosen) {
    unsigned kinds = 0;
    if (b.down.data) kinds |= 1u << b.gate.kind | 1u << b.up.kind;
    if (b.router.data) kinds |= 1u << b.gate_up.kind;
    w.each_token([&](int64_t t) { norm_token(w, t, x.row(t), b.post_norm, b.norm_eps, b.hidden, kinds); });
    feed_forward_in(b, w);
    w.team.wait();

    if (b.router.data) {
        w.each_token([&](int64_t t) { route(b, w, t); });
        sort_pairs(b, w);
        if (chosen && w.team.id == 0) std::copy_n(w.chosen, w.tokens * b.top_k, chosen);
        experts_in(b, w);
        w.team.wait();
    }
    feed_forward_out(b, w, x);
    w.team.wait();
}

// Runs f(work) on all threads of the team. `lay` hands out their buffers.
template <class Buffers, class Lay, class F>
Status with_team(int threads, Lay lay, F f) {
    Shared shared;
    Arena arena;
    Buffers* works = arena.take<Buffers>(threads);
    {
        Buffers* const dry = static_cast<Buffers*>(std::calloc(threads, sizeof(Buffers)));
        if (!dry) return NO_MEMORY;
        lay(arena, dry);
        std::free(dry);
    }
    arena.base = memory.at_least(arena.used);
    if (!arena.base) return NO_MEMORY;
    arena.used = 0;
    works = arena.take<Buffers>(threads);
    lay(arena, works);
#pragma omp parallel num_threads(threads)
    {
        Buffers& work = works[omp_get_thread_num()];
        work.team = {&shared, omp_get_thread_num(), omp_get_num_threads()};
        f(work);
    }
    return OK;
}

template <class F>
Status with_work(const Sizes& sizes, int64_t tokens, int64_t parts, int threads, F f) {
    return with_team<Work>(
        threads, [&](Arena& arena, Work* all) { lay_work(arena, sizes, tokens, parts, threads, all); }, f);
}

// All blocks over tokens of which none belongs to a long segment.
Status run_short(const Block* const* blocks, const Pool* pools, int64_t count, const Step& step, float* x,
                 int64_t* const* chosen, int threads) {
    Sizes sizes;
    for (int64_t i = 0; i < count; ++i) sizes.include(*blocks[i]);
    const int64_t parts = parts_stored(step, sizes.heads, threads);
    return with_work(sizes, step.tokens, parts, threads, [&](Work& w) {
        const Buffer stream{x, blocks[0]->hidden};
        for (int64_t i = 0; i < count; ++i) {
            attention(*blocks[i], pools[i], step, w, stream);
            feed_forward(*blocks[i], w, stream, chosen[i]);
        }
    });
}

// All blocks over tokens of long segments.
Status run_long(const Block* const* blocks, const Pool* pools, int64_t count, const Step& step, float* x,
                int64_t* const* chosen, int threads) {
    Sizes sizes;
    KeySizes keys;
    for (int64_t i = 0; i < count; ++i) sizes.include(*blocks[i]), keys.include(*blocks[i]);
    const Plan plan(step, keys.keys + keys.values);
    const Buffer stream{x, blocks[0]->hidden};
    const auto lay = [&](Arena& arena, Prefill* all) {
        lay_prefill(arena, sizes, keys, plan, stream, step.tokens, threads, all);
    };
    return with_team<Prefill>(threads, lay, [&](Prefill& w) {
        for (int64_t i = 0; i < count; ++i) {
            prefill_attention(*blocks[i], pools[i], step, w, stream);
            prefill_feed_forward(*blocks[i], w, stream, chosen[i]);
        }
    });
}

using Run = Status (*)(const Block* const*, const Pool*, int64_t, const Step&, float*, int64_t* const*, int);

// Some of the tokens of a step: copied out, run, and brought back.
Status run_part(Run run, const std::vector<int64_t>& tokens, const Block* const* blocks, const Pool* pools,
                int64_t count, const Step& step, float* x, int64_t* const* chosen, int threads) {
    const int64_t hidden = blocks[0]->hidden;
    Part part(step, tokens, blocks[0]->rope / 2, x, hidden);
    std::vector<std::vector<int64_t>> experts(count);
    std::vector<int64_t*> to(count);
    for (int64_t i = 0; i < count; ++i) {
        if (chosen[i]) experts[i].resize(part.tokens.size() * blocks[i]->top_k);
        to[i] = chosen[i] ? experts[i].data() : nullptr;
    }
    if (const Status status = run(blocks, pools, count, part.step, part.x.data(), to.data(), threads)) return status;
    for (size_t n = 0; n < tokens.size(); ++n) {
        std::copy_n(part.x.data() + n * hidden, hidden, x + tokens[n] * hidden);
        for (int64_t i = 0; i < count; ++i) {
            const int64_t k = blocks[i]->top_k;
            if (chosen[i]) std::copy_n(to[i] + n * k, k, chosen[i] + tokens[n] * k);
        }
    }
    return OK;
}

}  // namespace
}  // namespace fathom

using namespace fathom;

extern "C" {

// Sizes of the structures, to find a mismatch with structs.py before it does harm.
int64_t fathom_sizes(int64_t which) {
    const int64_t sizes[] = {sizeof(Matrix), sizeof(Block), sizeof(Pool), sizeof(Step)};
    return sizes[which];
}

// `count` blocks with their pools: x [T, D] becomes the last one's output. chosen[i] null or [T, K].
int fathom_blocks(const Block* const* blocks, const Pool* pools, int64_t count, const Step* step, float* x,
                  int64_t* const* chosen, int threads) {
    if (!step->tokens || !count) return OK;
    if (const Status status = check(*step, pools, count, true)) return status;
    try {
        std::vector<int64_t> long_tokens, others;
        split(*step, *blocks[0], long_tokens, others);
        if (long_tokens.empty()) return run_short(blocks, pools, count, *step, x, chosen, threads);
        if (others.empty()) return run_long(blocks, pools, count, *step, x, chosen, threads);
        const Status status = run_part(run_long, long_tokens, blocks, pools, count, *step, x, chosen, threads);
        return status ? status : run_part(run_short, others, blocks, pools, count, *step, x, chosen, threads);
    } catch (const std::bad_alloc&) {
        return NO_MEMORY;
    }
}

// Only the latents and rope keys of the tokens x [T, D], into the pool.
int fathom_latents(const Block* block, const Pool* pool, const Step* step, const float* x, int threads) {
    if (!step->tokens) return OK;
    if (const Status status = check(*step, pool, 1, false)) return status;
    Sizes sizes;
    sizes.include(*block);
    return with_work(sizes, step->tokens, 1, threads, [&](Work& w) {
        const Block& b = *block;
        w.each_token([&](int64_t t) {
            norm_token(w, t, x + t * b.hidden, b.input_norm, b.norm_eps, b.hidden, 1u << b.kv_a.kind);
        });
        int64_t low, high;
        w.team.part(b.kv_a.rows, 8, low, high);
        linear(b.kv_a, low, high, w.tokens, w.rows_of(w.normed[b.kv_a.kind]), w.outputs(w.kv, low));
        w.team.wait();
        w.team.part(w.tokens, 1, low, high);
        for (int64_t t = low; t < high; ++t) store_latent(b, *pool, *step, w, t);
    });
}

// y [T, rows] = m x, x [T, cols] normed first when there is a gain.
int fathom_linear(const Matrix* m, const float* gain, float eps, const float* x, int64_t tokens, float* y,
                  int threads) {
    if (!tokens) return OK;
    Sizes sizes;
    sizes.hidden = m->cols;
    return with_work(sizes, tokens, 1, threads, [&](Work& w) {
        const Buffer& laid = w.normed[m->kind];
        w.each_token([&](int64_t t) {
            const float* row = x + t * m->cols;
            if (gain) norm_token(w, t, row, gain, eps, m->cols, 1u << m->kind);
            else layout(m->kind, row, m->cols, 1, laid.row(t));
        });
        int64_t low, high;
        w.team.part(m->rows, 8, low, high);
        linear(*m, low, high, w.tokens, w.rows_of(laid), w.outputs(Buffer{y, m->rows}, low));
    });
}

// y [T, width] = rms_norm(x) * gain, row by row. PyTorch makes five operations of it, which at one token cost 50 us.
int fathom_norm(const float* gain, float eps, const float* x, int64_t tokens, int64_t width, float* y) {
    for (int64_t t = 0; t < tokens; ++t) rms_norm(x + t * width, nullptr, gain, eps, width, y + t * width);
    return OK;
}
}
