// Dense attention: every visible token. Flash-decoding over parts of the context, heads of a group together.
#include <omp.h>

#include <algorithm>
#include <limits>

#include "step/row.h"

namespace adamas {

void attend_dense(const Row& row, int threads) {
  Plan& plan = row.plan;
  const int kv_heads = plan.params.kv_heads, q_heads = plan.params.q_heads, group = row.group();
  const int64_t blocks = blocks_of(row.view.tokens);
  // Parts of eight blocks and more: the same for any number of threads, and so the same bits.
  const int parts = int(std::clamp<int64_t>(blocks / 8, 1, plan.splits));
  const int64_t per_part = (blocks + parts - 1) / parts;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp for schedule(static)
    for (int h = 0; h < q_heads; h++)
      if (reads_all(plan.results[h].reading)) load_query(row, h);
    const int thread = omp_get_thread_num();
    Clock& clock = row.start_clock(thread);
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < int64_t(kv_heads) * parts; i++) {
      const int g = int(i / parts), part = int(i % parts);
      for (int next = g * group; next < (g + 1) * group;) {
        int heads = 0, ours[max_attend_heads];
        const float* queries[max_attend_heads];
        float slopes[max_attend_heads];
        SoftmaxState states[max_attend_heads];
        for (; next < (g + 1) * group && heads < max_attend_heads; next++) {
          if (!reads_all(plan.results[next].reading)) continue;
          ours[heads] = next;
          queries[heads] = row.q(next);
          slopes[heads] = row.slope(next);
          states[heads] = row.states(next)[part];
          states[heads++].clear(row.head_dim());
        }
        if (heads == 0) break;
        attend_range(row.attention(g), queries, slopes, heads, row.view.bits, std::min(blocks, part * per_part),
                     std::min(blocks, (part + 1) * per_part), states);
        for (int j = 0; j < heads; j++) row.states(ours[j])[part] = states[j];
      }
      clock.lap(&Times::dense);
    }
    row.start_clock(thread);
#pragma omp for schedule(static)
    for (int h = 0; h < q_heads; h++) {
      if (!reads_all(plan.results[h].reading)) continue;
      for (int part = 1; part < parts; part++) row.states(h)->merge(row.states(h)[part], row.head_dim());
      finish(row, h);
      clock.lap(&Times::dense);
    }
  }
}

}  // namespace adamas
