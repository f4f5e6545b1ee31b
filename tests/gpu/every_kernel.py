"""Launches every kernel once, on small inputs, for compute-sanitizer."""

import torch

import hp_norm_plugin as hp
from hp_norm_plugin import rules

launched = 0
for dtype in (torch.bfloat16, torch.float16, torch.float32):
    for hidden_size, offset in ((4096, 0), (1000, 1), (65536, 0)):
        weights = [torch.ones(hidden_size, device="cuda", dtype=dtype)]
        if dtype != torch.float32:
            weights.append(weights[0].float())
        buffer = torch.ones(2 * (hidden_size + offset), device="cuda", dtype=dtype)
        x = buffer.view(2, -1)[:, offset:]
        residual = x.clone()
        seen = set()
        for config in rules.candidates(hidden_size, dtype, rules.sm_of("cuda")):
            paths = [name for name in config.option_names() if name in rules.PATHS]
            any_access = "narrow" in paths or "reread" in paths
            rows, ctas = config.rows_per_cta > 1, config.ctas_per_row > 1
            kernel = (config.vec_bytes, config.vecs_per_thread, rows, ctas, *paths)
            if kernel in seen or (offset and not any_access):
                continue
            seen.add(kernel)
            for weight in weights:
                with rules.forced(config):
                    hp.rms_norm(x, weight, 1e-6)
                    hp.fused_add_rms_norm(x, residual, weight, 1e-6)
                launched += 2
torch.cuda.synchronize()
print(f"kernels launched: {launched}")
