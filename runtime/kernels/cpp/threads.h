// Work for several threads: torch's OpenMP threads, as many as torch uses in the calling thread.
#pragma once

#include <immintrin.h>
#include <omp.h>
#include <sched.h>

#include <atomic>
#include <cstdint>

namespace twinflow {

// Indices [begin, end).
struct Range {
    int64_t begin, end;
};

// Where threads wait for each other: awake for a while, because whoever is missing is about to
// come, and then giving the core to others, because it may have been taken from it.
class Barrier {
  public:
    explicit Barrier(int threads) : threads_(threads) {}

    void wait() {
        const unsigned round = round_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
            arrived_.store(0, std::memory_order_relaxed);
            round_.store(round + 1, std::memory_order_release);
            return;
        }
        for (int turns = 0; round_.load(std::memory_order_acquire) == round; ++turns) {
            if (turns < kTurnsAwake) {
                _mm_pause();
            } else {
                sched_yield();
            }
        }
    }

  private:
    static constexpr int kTurnsAwake = 2000;
    const int threads_;
    std::atomic<int> arrived_{0};
    std::atomic<unsigned> round_{0};
};

// One thread of those that carry out the same operations, each its share of them.
struct Crew {
    int64_t thread = 0, threads = 1;
    Barrier* barrier = nullptr;  // none if nothing follows in the same crew

    // Do this thread's share of `count` items, or let one thread do all of them if they are not
    // worth sharing; behind it all of them are done.
    template <class Work>
    void share(int64_t count, bool is_worth_it, Work&& work) const {
        const int64_t sharing = is_worth_it ? threads : 1;
        const Range mine{count * thread / sharing, count * (thread + 1) / sharing};
        if (thread < sharing && mine.begin < mine.end) work(mine);
        if (barrier != nullptr) barrier->wait();
    }
};

// Call `work(Crew)` in each thread, or here alone.
template <class Work>
inline void with_crew(bool is_worth_it, Work&& work) {
#pragma omp parallel if (is_worth_it)
    { work(Crew{omp_get_thread_num(), omp_get_num_threads()}); }
}

// Call `work(Crew)` in each thread for operations that follow each other.
template <class Work>
inline void with_lasting_crew(Work&& work) {
    const int threads = omp_get_max_threads();
    Barrier barrier(threads);
#pragma omp parallel num_threads(threads)
    {
        // OpenMP may give fewer threads than it was asked for; one of them then does everything.
        const bool complete = omp_get_num_threads() == threads;
        if (complete && threads > 1) {
            work(Crew{omp_get_thread_num(), threads, &barrier});
        } else if (omp_get_thread_num() == 0) {
            work(Crew{});
        }
    }
}

}  // namespace twinflow
