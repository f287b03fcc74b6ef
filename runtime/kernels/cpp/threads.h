// Work for several threads: torch's OpenMP threads, as many as torch uses in the calling thread.
#pragma once

#include <omp.h>

#include <cstdint>

namespace twinflow {

// Indices [begin, end).
struct Range {
    int64_t begin, end;
};

// Call `work(Range)` in each thread with its share of `count` items, or here with all of them.
template <class Work>
inline void share(int64_t count, bool is_worth_it, Work&& work) {
#pragma omp parallel if (is_worth_it)
    {
        const int64_t threads = omp_get_num_threads();
        const int64_t thread = omp_get_thread_num();
        const Range mine{count * thread / threads, count * (thread + 1) / threads};
        if (mine.begin < mine.end) work(mine);
    }
}

}  // namespace twinflow
