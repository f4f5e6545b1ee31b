// The CPU row kernel, compiled once for each instruction set (setup.py) and chosen at run time.
#pragma once

#include "../norm_call.h"

namespace hp_norm {

using RowKernel = void (*)(const NormCall& call, int64_t first_row, int64_t last_row);

void norm_rows_baseline(const NormCall& call, int64_t first_row, int64_t last_row);
void norm_rows_avx2(const NormCall& call, int64_t first_row, int64_t last_row);
void norm_rows_avx512(const NormCall& call, int64_t first_row, int64_t last_row);
void norm_rows_avx512bf16(const NormCall& call, int64_t first_row, int64_t last_row);

}  // namespace hp_norm
