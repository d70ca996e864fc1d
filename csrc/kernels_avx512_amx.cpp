// The kernels for processors with AVX-512 and AMX: products of bytes and of bfloat16 in tile registers.
#include "kernels.h"
#if defined(BERTHEAD_AMX)
#pragma GCC target("amx-tile,amx-int8,amx-bf16,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")
#define KERNELS avx512_amx_kernels
#define KERNELS_NAME "avx512_amx"
#define HAS_VNNI
#define HAS_BF16
#define HAS_AMX
#include "vectors_avx512.h"
#include "target.inc"
#endif
