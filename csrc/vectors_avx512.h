// Vectors of AVX-512 (F, BW, VL and DQ): sixteen float32 or int32 lanes. The operations have the names of
// github.com/google/highway.

#include <cstdint>

#include "intrinsics.h"

namespace berthead {
namespace {

typedef __m512 VF;
typedef __m512i VI;

constexpr int kLanes = 16;
// A tile of a product is kMR rows by kNV vectors, kNR columns. Of the 32 registers 24 hold its sums, two the right
// side, and one a number of the left side.
#define TALL_TILES 1
constexpr int kMR = 12, kNV = 2, kNR = kNV * kLanes;

inline __mmask16 FirstN(int n) { return (__mmask16)((1u << n) - 1); }
inline VF Load(const float* p) { return _mm512_loadu_ps(p); }
// The first n lanes, n below kLanes; the other lanes are 0.
inline VF MaskedLoad(const float* p, int n) { return _mm512_maskz_loadu_ps(FirstN(n), p); }
inline void Store(float* p, VF x) { _mm512_storeu_ps(p, x); }
inline void MaskedStore(float* p, VF x, int n) { _mm512_mask_storeu_ps(p, FirstN(n), x); }

inline VF Set(float x) { return _mm512_set1_ps(x); }
inline VF Zero() { return _mm512_setzero_ps(); }
inline VF Add(VF a, VF b) { return _mm512_add_ps(a, b); }
inline VF Sub(VF a, VF b) { return _mm512_sub_ps(a, b); }
inline VF Mul(VF a, VF b) { return _mm512_mul_ps(a, b); }
inline VF Div(VF a, VF b) { return _mm512_div_ps(a, b); }
inline VF Sqrt(VF a) { return _mm512_sqrt_ps(a); }
inline VF MulAdd(VF a, VF b, VF c) { return _mm512_fmadd_ps(a, b, c); }
inline VF Max(VF a, VF b) { return _mm512_max_ps(a, b); }
inline VF Min(VF a, VF b) { return _mm512_min_ps(a, b); }
// Clamps a to [-b, b]; b is positive.
inline VF ClampAbs(VF a, VF b) { return _mm512_range_ps(a, b, 2); }
inline VF Abs(VF a) { return _mm512_abs_ps(a); }
// The magnitude of one number with the sign of another.
inline VF CopySignToAbs(VF a, VF sign) {
  const VI bit = _mm512_set1_epi32((int)0x80000000u);
  return _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(a), _mm512_and_si512(_mm512_castps_si512(sign), bit)));
}

// Of all lanes.
inline float ReduceSum(VF a) { return _mm512_reduce_add_ps(a); }
inline float ReduceMax(VF a) { return _mm512_reduce_max_ps(a); }
inline float ReduceMin(VF a) { return _mm512_reduce_min_ps(a); }
// The first n lanes of a, the others of b.
inline VF FirstNElse(VF a, VF b, int n) { return _mm512_mask_blend_ps(FirstN(n), b, a); }
// To the nearest integer.
inline VF Round(VF a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// a times 2 to the power of an integer.
inline VF MulByPow2(VF a, VF whole) { return _mm512_scalef_ps(a, whole); }
// Wrong in the last bit or two, but without a division.
inline VF Reciprocal(VF a) {
  const VF guess = _mm512_rcp14_ps(a);
  return Mul(guess, _mm512_fnmadd_ps(a, guess, Set(2)));
}

inline VI LoadI32(const int32_t* p) { return _mm512_loadu_si512(p); }
inline VI SetI32(int32_t x) { return _mm512_set1_epi32(x); }
inline VF ConvertToF32(VI x) { return _mm512_cvtepi32_ps(x); }
inline VI ZeroI32() { return _mm512_setzero_si512(); }
inline VF BitCastToF32(VI x) { return _mm512_castsi512_ps(x); }
// c plus, in each lane, the dot product of two int16.
inline VI DotI16(VI c, VI a, VI b) { return _mm512_add_epi32(c, _mm512_madd_epi16(a, b)); }
inline VI AddI32(VI a, VI b) { return _mm512_add_epi32(a, b); }
inline VI MulI32(VI a, VI b) { return _mm512_mullo_epi32(a, b); }
inline VI XorI32(VI a, VI b) { return _mm512_xor_si512(a, b); }
inline VI ShiftRightI32(VI a, int bits) { return _mm512_srli_epi32(a, (unsigned)bits); }
// 0, 1, 2 and so on.
inline VI IotaI32() { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
// x where a < b, y elsewhere.
inline VF IfLessThenElse(VI a, VI b, VF x, VF y) { return _mm512_mask_blend_ps(_mm512_cmplt_epi32_mask(a, b), y, x); }
// x where a > 0, 0 elsewhere.
inline VF IfPositiveThenElseZero(VF a, VF x) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, Zero(), _CMP_GT_OQ), x);
}

// Numbers from 0 to 255, rounded.
inline void StoreU8(uint8_t* p, VF x) { _mm_storeu_si128((__m128i*)p, _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(x))); }
inline void StoreI16(int16_t* p, VF x) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(x)));
}

#ifdef HAS_BF16
inline VF LoadBF16(const uint16_t* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
inline void StoreBF16(uint16_t* p, VF x) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(x)); }
// c plus, in each lane, the dot product of two bfloat16.
inline VF DotBF16(VF c, VI a, VI b) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
  return c;
}
#endif

#ifdef HAS_VNNI
// c plus, in each lane, the dot product of four uint8 and four int8. In assembler, because through the intrinsic GCC 12
// keeps the sums in memory.
inline VI DotU8I8(VI c, VI a, VI b) {
  asm("vpdpbusd %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
  return c;
}
#endif

}  // namespace
}  // namespace berthead
