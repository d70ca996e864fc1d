// The kernels for processors with avx512f, avx512bw, avx512vl, avx512dq, avx512vnni, avx2, fma, f16c.
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")
#define HAS_VNNI
#define KERNELS avx512_vnni_kernels
#define KERNELS_NAME "avx512_vnni"
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
