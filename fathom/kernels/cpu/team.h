// The threads of one call: who does what, how they wait for each other, where they put intermediate results.
//
// A block is a chain of small products; at one token per step each takes a few microseconds, so waiting must cost far
// less. The barrier spins (a tenth of a microsecond when all cores are free), and gives its core away when the wait
// gets long: then somebody else is using the machine.
#pragma once

#include <sched.h>

#include <atomic>
#include <cstdlib>

#include "linear.h"

namespace fathom {

struct alignas(64) Counter {
    std::atomic<int64_t> value{0};
};

// What all threads of a call see.
struct Shared {
    Counter arrived, round;
    Counter queue[3];  // next item of a phase whose items differ in size
};

enum Queue { ATTENTION = 0, FEED_FORWARD = 1, EXPERTS = 2 };

struct Team {
    Shared* shared;
    int id, threads;

    void wait() const {
        if (threads == 1) return;
        const int64_t round = shared->round.value.load(std::memory_order_relaxed);
        if (shared->arrived.value.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
            shared->arrived.value.store(0, std::memory_order_relaxed);
            shared->round.value.store(round + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; shared->round.value.load(std::memory_order_acquire) == round; ++spins) {
            if (spins > 4000) sched_yield();
#if defined(__x86_64__)
            else __builtin_ia32_pause();
#endif
        }
    }

    // This thread's part of 0 .. total, in multiples of `unit`.
    void part(int64_t total, int64_t unit, int64_t& low, int64_t& high) const {
        const int64_t units = (total + unit - 1) / unit;
        low = std::min(total, units * id / threads * unit);
        high = std::min(total, units * (id + 1) / threads * unit);
    }

    int64_t take(Queue queue) const { return shared->queue[queue].value.fetch_add(1, std::memory_order_relaxed); }
    // Only where a barrier stands before and after, between this and any `take`.
    void rewind(Queue queue) const {
        if (id == 0) shared->queue[queue].value.store(0, std::memory_order_relaxed);
    }
};

// Memory for one call, handed out in order. First run without memory to learn the size.
struct Arena {
    char* base = nullptr;
    int64_t used = 0;

    template <class T>
    T* take(int64_t count) {
        T* p = reinterpret_cast<T*>(base + used);
        used += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
        return base ? p : nullptr;
    }
};

// A block of memory that grows and is kept by the calling thread for its next call.
struct Memory {
    char* base = nullptr;
    int64_t size = 0;

    char* at_least(int64_t bytes) {
        if (bytes > size) {
            std::free(base);
            bytes += bytes / 4;
            base = static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
            size = base ? bytes : 0;
        }
        return base;
    }
    ~Memory() { std::free(base); }
};

}  // namespace fathom
