// The kernels for processors with AVX-512 with VNNI and BF16: products of bytes and of bfloat16.
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")
#define KERNELS avx512_bf16_kernels
#define KERNELS_NAME "avx512_bf16"
#define HAS_VNNI
#define HAS_BF16
#include "vectors_avx512.h"
#include "target.inc"
#endif
