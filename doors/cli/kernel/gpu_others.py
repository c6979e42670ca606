"""Times one decoding step of full attention of other libraries, as `adamas bench --kernel --device cuda` times ours.

Arguments: query heads, KV heads, head_dim, tokens, batch, layers, replays. Prints JSON: microseconds by name, and why what
is missing is missing.
"""
import json
import statistics
import sys

q_heads, kv_heads, head_dim, tokens, batch, layers, replays = map(int, sys.argv[1:8])
times, missing = {}, {}


def measure(name, step, steps):
    """step(i): the i-th step. A graph of all is replayed."""
    try:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for i in range(steps):
                step(i)
            stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                for i in range(steps):
                    step(i)
            taken = []
            for i in range(replays + 3):
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record(stream)
                graph.replay()
                end.record(stream)
                end.synchronize()
                if i >= 3:
                    taken.append(begin.elapsed_time(end) * 1e3 / steps)
        times[name] = statistics.median(taken)
    except Exception as error:  # an unsupported shape, a kernel that was not built: the others are measured all the same
        missing[name] = str(error).split("\n")[0]


try:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    steps = max(24 // layers, 1) * layers
    keys = [torch.randn(batch, kv_heads, tokens, head_dim, dtype=torch.float16, device="cuda") for _ in range(layers)]
    values = [torch.randn_like(k) for k in keys]
    q = torch.randn(batch, q_heads, 1, head_dim, dtype=torch.float16, device="cuda")
    version = torch.__version__.split("+")[0]
    for name, backend in [("cuDNN", SDPBackend.CUDNN_ATTENTION), ("flash", SDPBackend.FLASH_ATTENTION)]:
        with sdpa_kernel(backend):
            measure(f"PyTorch {version} {name}", lambda i: scaled_dot_product_attention(
                q, keys[i % layers], values[i % layers], enable_gqa=q_heads != kv_heads), steps)
    try:
        import flashinfer

        page, pages = 16, batch * tokens // 16
        paged = [torch.stack([x.transpose(1, 2).reshape(pages, page, kv_heads, head_dim) for x in (k, v)], 1)
                 for k, v in zip(keys, values)]
        del keys, values
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            torch.empty(512 << 20, dtype=torch.uint8, device="cuda"), "NHD", use_cuda_graph=True,
            use_tensor_cores=q_heads != kv_heads,
            paged_kv_indptr_buffer=torch.empty(batch + 1, dtype=torch.int32, device="cuda"),
            paged_kv_indices_buffer=torch.empty(pages, dtype=torch.int32, device="cuda"),
            paged_kv_last_page_len_buffer=torch.empty(batch, dtype=torch.int32, device="cuda"))
        wrapper.plan(torch.arange(0, pages + 1, tokens // page, dtype=torch.int32),
                     torch.arange(pages, dtype=torch.int32, device="cuda"),
                     torch.full((batch,), page, dtype=torch.int32), q_heads, kv_heads, head_dim, page,
                     q_data_type=torch.float16)
        rows = q[:, :, 0].contiguous()
        measure(f"FlashInfer {flashinfer.__version__}", lambda i: wrapper.run(rows, paged[i % layers]), steps)
    except Exception as error:
        missing["FlashInfer"] = str(error).split("\n")[0]
except Exception as error:
    missing["PyTorch"] = str(error).split("\n")[0]
print(json.dumps({"times": times, "missing": missing}))
