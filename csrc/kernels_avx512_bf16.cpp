// The kernels for processors with avx512f, avx512bw, avx512vl, avx512dq, avx512vnni, avx512bf16, avx2, fma, f16c.
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")
#define HAS_VNNI
#define HAS_BF16
#define KERNELS avx512_bf16_kernels
#define KERNELS_NAME "avx512_bf16"
#include <immintrin.h>

#include <cmath>
#include <cstdlib>
#include <cstring>

#include "engine.h"
namespace {
#include "vectors_avx512.h"
}
#include "kernels.inc"
#include "training.inc"
#include "adamw.inc"
#include "table.inc"
#endif
