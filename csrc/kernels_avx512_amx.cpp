// The kernels for processors with amx-tile, amx-int8, amx-bf16, avx512f, avx512bw, avx512vl, avx512dq, avx512vnni,
// avx512bf16, avx2, fma, f16c.
#include "engine.h"
#if defined(BERTHEAD_AMX)
#pragma GCC target("amx-tile,amx-int8,amx-bf16,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")
#define HAS_VNNI
#define HAS_BF16
#define HAS_AMX
#define KERNELS avx512_amx_kernels
#define KERNELS_NAME "avx512_amx"
#include <immintrin.h>

#include <cmath>
#include <cstdlib>
#include <cstring>

namespace {
#include "vectors_avx512.h"
}
#include "kernels.inc"
#include "training.inc"
#include "adamw.inc"
#include "table.inc"
#endif
