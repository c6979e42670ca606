// The single stages of the C ABI.
#include "step/stages.h"

#include "capi/door.h"

using namespace adamas;

namespace {

Status check_queries(const void* q, int32_t dtype, int64_t stride, int32_t q_heads, int32_t kv_heads, int32_t threads,
                     float scale) {
  ADAMAS_TRY(check_range(q_heads, 1, max_heads, "q_heads"));
  if (q_heads % kv_heads != 0)
    return invalid("q_heads " + std::to_string(q_heads) + " is not a multiple of kv_heads " + std::to_string(kv_heads));
  ADAMAS_TRY(check_pointer(q, "q"));
  ADAMAS_TRY(check_dtype(dtype, plain_dtypes, "q"));
  ADAMAS_TRY(check_stride(stride, q_heads, "q_stride_head"));
  ADAMAS_TRY(check_range(threads, 1, max_threads, "threads"));
  if (!(scale >= 0 && scale < std::numeric_limits<float>::infinity())) return invalid("scale is negative or not finite");
  return {};
}

// Every row of a sequence has codes, but for those that wait for their group.
Status check_encoded(const Cache& cache, int64_t sequence) {
  const int64_t length = cache.length(sequence);
  for (int64_t b = 0; b < blocks_of(length); b++) {
    if ((bits_between(0, length - b * block_tokens) & ~cache.blocks.live(sequence, b)) != 0)
      return invalid("some rows of block " + std::to_string(b) + " were never appended");
    if (cache.keys_marked(sequence, b))
      return invalid("block " + std::to_string(b) + " is not encoded yet: adamas_append takes k for that");
  }
  return {};
}

// Of one sequence alone.
Status check_rows_of(const adamas_rows& rows, const adamas_attend_params& p, const char* name) {
  adamas_cache_params shape{};
  shape.kv_heads = p.kv_heads;
  shape.head_dim = p.head_dim;
  shape.sequences = p.sequence + 1;
  shape.capacity = p.tokens;
  ADAMAS_TRY(check_rows(rows, shape, name));
  return check_page_ids(rows, p.sequence, 0, p.tokens, name);
}

Status check_indices(const adamas_attend_params& p) {
  if (p.indices == nullptr) return {};
  ADAMAS_TRY(check_pointer(p.counts, "counts"));
  ADAMAS_TRY(check_range(p.index_stride, 0, max_tokens, "index_stride"));
  for (int32_t h = 0; h < p.q_heads; h++) {
    const int64_t* indices = p.indices + h * p.index_stride;
    ADAMAS_TRY(check_range(p.counts[h], 0, p.index_stride, "counts"));
    for (int64_t i = 0; i < p.counts[h]; i++)
      if (indices[i] < 0 || indices[i] >= p.tokens)
        return out_of_range("indices of head " + std::to_string(h) + ": " + std::to_string(indices[i]) + ", of " +
                            std::to_string(p.tokens) + " tokens");
  }
  return {};
}

}  // namespace

extern "C" {

adamas_status adamas_scores(const adamas_cache* cache, const adamas_score_params* params) {
  return guarded("adamas_scores", [&]() -> Status {
    ADAMAS_TRY(check_pointer(cache, "cache"));
    ADAMAS_TRY(check_size(params));
    const adamas_score_params p = whole(params);
    const adamas_cache_params& shape = cache->params();
    if (cache->gpu) return unsupported("single stages run on a CPU, and the cache is on a GPU");
    if (cache->config().policy != ADAMAS_POLICY_ADAMAS) return unsupported("only the policy adamas has scores");
    ADAMAS_TRY(check_sequence(shape, p.sequence));
    ADAMAS_TRY(check_queries(p.q, p.q_dtype, p.q_stride_head, p.q_heads, shape.kv_heads, p.threads, p.scale));
    ADAMAS_TRY(check_encoded(*cache->host, p.sequence));
    if (cache->host->length(p.sequence) > 0) ADAMAS_TRY(check_pointer(p.scores, "scores"));
    return score(*cache->host, p);
  });
}

adamas_status adamas_select(const adamas_select_params* params) {
  return guarded("adamas_select", [&]() -> Status {
    ADAMAS_TRY(check_size(params));
    const adamas_select_params p = whole(params);
    ADAMAS_TRY(check_range(p.heads, 1, max_heads, "heads"));
    ADAMAS_TRY(check_range(p.count, 0, max_tokens, "count"));
    ADAMAS_TRY(check_range(p.budget, 1, max_tokens, "budget"));
    ADAMAS_TRY(check_pointer(p.counts, "counts"));
    if (p.count > 0) ADAMAS_TRY(check_pointer(p.scores, "scores"));
    if (p.count > 0) ADAMAS_TRY(check_pointer(p.indices, "indices"));
    return select(p);
  });
}

adamas_status adamas_attend(const adamas_attend_params* params) {
  return guarded("adamas_attend", [&]() -> Status {
    ADAMAS_TRY(check_size(params));
    const adamas_attend_params p = whole(params);
    ADAMAS_TRY(check_range(p.kv_heads, 1, max_heads, "kv_heads"));
    ADAMAS_TRY(check_head_dim(p.head_dim));
    ADAMAS_TRY(check_queries(p.q, p.q_dtype, p.q_stride_head, p.q_heads, p.kv_heads, p.threads, p.scale));
    if (!(p.softcap >= 0 && p.softcap < std::numeric_limits<float>::infinity()))
      return invalid("softcap is negative or not finite");
    ADAMAS_TRY(check_range(p.sequence, 0, max_tokens, "sequence"));
    ADAMAS_TRY(check_range(p.tokens, 0, max_tokens, "tokens"));
    ADAMAS_TRY(check_pointer(p.out, "out"));
    if (p.tokens > 0) ADAMAS_TRY(check_rows_of(p.k, p, "k"));
    if (p.tokens > 0) ADAMAS_TRY(check_rows_of(p.v, p, "v"));
    ADAMAS_TRY(check_indices(p));
    attend(p);
    return {};
  });
}

}  // extern "C"
