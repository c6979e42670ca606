#include "arguments.h"

#include <bit>
#include <cmath>
#include <numeric>

#include "settings.h"

namespace adamas_ggml {
namespace {

// ALiBi as ggml defines it: a geometric series over the largest power of two of heads, the rest from the one twice as
// fine, at its odd places.
void alibi_slopes(int64_t heads, float max_bias, std::vector<float>& slopes) {
  const int64_t power = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(heads)));
  const float base = std::exp2(-max_bias / static_cast<float>(power));
  const float finer = std::exp2(-max_bias / 2.0f / static_cast<float>(power));
  slopes.resize(static_cast<size_t>(heads));
  for (int64_t h = 0; h < heads; ++h)
    slopes[static_cast<size_t>(h)] =
        h < power ? std::pow(base, static_cast<float>(h + 1)) : std::pow(finer, static_cast<float>(2 * (h - power) + 1));
}

int64_t stride(size_t bytes) { return static_cast<int64_t>(bytes); }

}  // namespace

adamas_step_params Arguments::pack(const Attention& a, int threads) {
  sequences_.resize(static_cast<size_t>(a.batch));
  std::iota(sequences_.begin(), sequences_.end(), a.first_stream);
  lengths_.assign(static_cast<size_t>(a.batch), a.n_kv);
  if (a.max_bias > 0) alibi_slopes(a.q_heads, a.max_bias, slopes_);

  adamas_dtype k_dtype, v_dtype;
  dtype_of(a.k->type, k_dtype);
  dtype_of(a.v->type, v_dtype);
  // V [sequences, ...] is addressed by stream, and its view begins with the first stream in the batch.
  const int64_t v_stream = a.batch > 1 ? stride(a.v->nb[3]) : 0;

  adamas_step_params p{};
  p.struct_size = sizeof p;
  p.threads = threads;
  p.batch = a.batch;
  p.rows = a.rows;
  p.sequences = sequences_.data();
  p.lengths = lengths_.data();
  p.q_dtype = ADAMAS_F32;
  p.q = a.q->data;
  p.q_stride_batch = stride(a.q->nb[3]);
  p.q_stride_row = stride(a.q->nb[1]);
  p.q_stride_head = stride(a.q->nb[2]);
  p.k = {a.cache ? a.cache.root->data : a.k->data,
         k_dtype,
         stride(a.cache ? a.cache.root->nb[2] : a.k->nb[3]),
         stride(a.k->nb[2]),
         stride(a.k->nb[1]),
         nullptr,
         0};
  p.v = {reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(a.v->data) -
                                       static_cast<uintptr_t>(v_stream * a.first_stream)),
         v_dtype,
         v_stream,
         stride(a.v->nb[2]),
         stride(a.v->nb[1]),
         nullptr,
         0};
  p.out = static_cast<float*>(a.out->data);
  p.out_stride_batch = stride(a.out->nb[3]);
  p.out_stride_row = stride(a.out->nb[2]);
  p.out_stride_head = stride(a.out->nb[1]);
  p.scale = a.scale;
  p.softcap = a.softcap;
  if (a.mask) {
    p.mask = a.mask->data;
    p.mask_dtype = ADAMAS_F16;
    p.mask_stride_batch = a.mask->ne[3] > 1 ? stride(a.mask->nb[3]) : 0;
    p.mask_stride_row = stride(a.mask->nb[1]);
  }
  p.verify = 1;
  // Against changes that nobody announced (registry.h), which is none that we know of.
  p.verify_rows = ADAMAS_VERIFY_ROWS;
  p.slopes = a.max_bias > 0 ? slopes_.data() : nullptr;
  p.sink_logits = a.sinks ? static_cast<const float*>(a.sinks->data) : nullptr;
  if (config().stats || observed()) {
    mass_.resize(static_cast<size_t>(a.batch * a.rows * a.q_heads));
    noise_.resize(mass_.size());
    p.mass = mass_.data();
    p.noise = noise_.data();
  }
  return p;
}

}  // namespace adamas_ggml
