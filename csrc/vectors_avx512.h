// Sixteen float32 numbers at once.

typedef __m512 V;
typedef __m512i VI;
#define TALL_TILES 1
enum { W = 16, MR = 12, NV = 2, NR = NV * W };

static inline __mmask16 first_(int n) { return (__mmask16)((1u << n) - 1); }
static inline V load(const float* p) { return _mm512_loadu_ps(p); }
static inline V load(const float* p, int n) { return _mm512_maskz_loadu_ps(first_(n), p); }
static inline void store(float* p, V x) { _mm512_storeu_ps(p, x); }
static inline void store(float* p, V x, int n) { _mm512_mask_storeu_ps(p, first_(n), x); }
static inline V all(float x) { return _mm512_set1_ps(x); }
static inline V zero() { return _mm512_setzero_ps(); }
static inline V add(V a, V b) { return _mm512_add_ps(a, b); }
static inline V sub(V a, V b) { return _mm512_sub_ps(a, b); }
static inline V mul(V a, V b) { return _mm512_mul_ps(a, b); }
static inline V div(V a, V b) { return _mm512_div_ps(a, b); }
static inline V root_of(V a) { return _mm512_sqrt_ps(a); }
static inline V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
static inline V larger(V a, V b) { return _mm512_max_ps(a, b); }
static inline V smaller(V a, V b) { return _mm512_min_ps(a, b); }
// a, its size at most that of the positive b.
static inline V bounded(V a, V b) { return _mm512_range_ps(a, b, 2); }
static inline V absolute(V a) { return _mm512_abs_ps(a); }
static inline V with_sign(V a, V sign) {
  const VI bit = _mm512_set1_epi32((int)0x80000000u);
  return _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(a), _mm512_and_si512(_mm512_castps_si512(sign), bit)));
}
static inline float sum(V a) { return _mm512_reduce_add_ps(a); }
static inline float largest(V a) { return _mm512_reduce_max_ps(a); }
static inline float smallest(V a) { return _mm512_reduce_min_ps(a); }
// The first n lanes of a, the others of b.
static inline V choose(V a, V b, int n) { return _mm512_mask_blend_ps(first_(n), b, a); }
static inline V nearest(V a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline V times_power(V a, V whole) { return _mm512_scalef_ps(a, whole); }
static inline V reciprocal(V a) {  // to float32's last bit or two, without a division
  const V guess = _mm512_rcp14_ps(a);
  return mul(guess, _mm512_fnmadd_ps(a, guess, all(2)));
}
static inline VI load_words(const int32_t* p) { return _mm512_loadu_si512(p); }
static inline VI all_words(int32_t x) { return _mm512_set1_epi32(x); }
static inline V to_float(VI x) { return _mm512_cvtepi32_ps(x); }
static inline VI no_words() { return _mm512_setzero_si512(); }
static inline V as_float(VI x) { return _mm512_castsi512_ps(x); }
static inline VI pairs(VI c, VI a, VI b) { return _mm512_add_epi32(c, _mm512_madd_epi16(a, b)); }
static inline VI plus(VI a, VI b) { return _mm512_add_epi32(a, b); }
static inline VI times(VI a, VI b) { return _mm512_mullo_epi32(a, b); }
static inline VI exclusive_or(VI a, VI b) { return _mm512_xor_si512(a, b); }
static inline VI shifted(VI a, int bits) { return _mm512_srli_epi32(a, (unsigned)bits); }
static inline VI counting() { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
static inline V where_below(VI a, VI b, V x, V y) { return _mm512_mask_blend_ps(_mm512_cmplt_epi32_mask(a, b), y, x); }
static inline V where_positive(V a, V x) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, zero(), _CMP_GT_OQ), x); }
// Numbers from 0 to 255.
static inline void store_bytes(uint8_t* p, V x) {
  _mm_storeu_si128((__m128i*)p, _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(x)));
}
static inline void store_shorts(int16_t* p, V x) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(x)));
}
#ifdef HAS_BF16
static inline V load_bf16(const uint16_t* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
static inline void store_bf16(uint16_t* p, V x) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(x)); }
static inline V pairs_bf16(V c, VI a, VI b) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
  return c;
}
#endif
#ifdef HAS_VNNI
// Written out: through its intrinsic GCC 12 keeps the sums in memory.
static inline VI fours(VI c, VI a, VI b) {
  asm("vpdpbusd %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
  return c;
}
#endif
