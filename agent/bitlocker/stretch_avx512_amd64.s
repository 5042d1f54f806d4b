//go:build !purego

#include "textflag.h"

// The stretch of sixteen keys in the lanes of AVX-512. See laneWords in stretch.go
// for the words; word t of all lanes is a row of 64 bytes.
//
// AX constants, BX start, CX count, DX end, SI words; Z0 to Z7 the state, a to h;
// Z8 to Z23 sixteen message words; Z24 to Z31 scratch.

// XOR3 adds a third value to the sum of two, of which s is one.
#define XOR3(x, y, s) VPTERNLOGD $0x96, x, y, s

// ROUND does one round. What it adds to h comes from ADD before it.
#define ROUND(a, b, c, d, e, f, g, h) \
	VMOVDQA32 e, Z24; \
	VPRORD $6, e, Z25; \
	VPRORD $11, e, Z26; \
	VPRORD $25, e, Z27; \
	VPTERNLOGD $0xCA, g, f, Z24; \
	XOR3(Z25, Z26, Z27); \
	VMOVDQA32 a, Z28; \
	VPADDD Z24, h, h; \
	VPRORD $2, a, Z29; \
	VPADDD Z27, h, h; \
	VPRORD $13, a, Z30; \
	VPRORD $22, a, Z31; \
	VPADDD h, d, d; \
	VPTERNLOGD $0xE8, c, b, Z28; \
	XOR3(Z29, Z30, Z31); \
	VPADDD Z28, h, h; \
	VPADDD Z31, h, h

// KNOWN does a round with row t, which holds K + W.
#define KNOWN(t, a, b, c, d, e, f, g, h) \
	VPADDD (64*(t))(SI), h, h; \
	ROUND(a, b, c, d, e, f, g, h)

// USE does round t with the message word w.
#define USE(t, w, a, b, c, d, e, f, g, h) \
	VPADDD w, h, h; \
	VPADDD.BCST (4*(t))(AX), h, h; \
	ROUND(a, b, c, d, e, f, g, h)

// SIGMA0 and SIGMA1 add those of w to sum.
#define SIGMA0(w, sum) \
	VPRORD $7, w, Z24; \
	VPRORD $18, w, Z25; \
	VPSRLD $3, w, Z26; \
	XOR3(Z24, Z25, Z26); \
	VPADDD Z26, sum, sum

#define SIGMA1(w, sum) \
	VPRORD $17, w, Z27; \
	VPRORD $19, w, Z28; \
	VPSRLD $10, w, Z29; \
	XOR3(Z27, Z28, Z29); \
	VPADDD Z29, sum, sum

// SCHEDULE replaces the message word w0 by the one sixteen later.
#define SCHEDULE(w0, w1, w9, w14) \
	VPADDD w9, w0, w0; \
	SIGMA0(w1, w0); \
	SIGMA1(w14, w0)

#define STEP(t, w0, w1, w9, w14, a, b, c, d, e, f, g, h) \
	SCHEDULE(w0, w1, w9, w14); \
	USE(t, w0, a, b, c, d, e, f, g, h)

// STEPS does rounds t to t+15.
#define STEPS(t) \
	STEP(t+0, Z8, Z9, Z17, Z22, Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z7); \
	STEP(t+1, Z9, Z10, Z18, Z23, Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z6); \
	STEP(t+2, Z10, Z11, Z19, Z8, Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z5); \
	STEP(t+3, Z11, Z12, Z20, Z9, Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z4); \
	STEP(t+4, Z12, Z13, Z21, Z10, Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z3); \
	STEP(t+5, Z13, Z14, Z22, Z11, Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z2); \
	STEP(t+6, Z14, Z15, Z23, Z12, Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z1); \
	STEP(t+7, Z15, Z16, Z8, Z13, Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z0); \
	STEP(t+8, Z16, Z17, Z9, Z14, Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z7); \
	STEP(t+9, Z17, Z18, Z10, Z15, Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z6); \
	STEP(t+10, Z18, Z19, Z11, Z16, Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z5); \
	STEP(t+11, Z19, Z20, Z12, Z17, Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z4); \
	STEP(t+12, Z20, Z21, Z13, Z18, Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z3); \
	STEP(t+13, Z21, Z22, Z14, Z19, Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z2); \
	STEP(t+14, Z22, Z23, Z15, Z20, Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z1); \
	STEP(t+15, Z23, Z8, Z16, Z21, Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z0)

// FIRST makes the first block's message word t in w, from what the rows hold of
// it and, mostly, from w7 and w14, words t-7 and t-2, and does round t.
#define FIRST(t, w, w7, w14, a, b, c, d, e, f, g, h) \
	VPADDD (64*(t))(SI), w7, w; \
	SIGMA1(w14, w); \
	USE(t, w, a, b, c, d, e, f, g, h)

// LAST begins that of a word to which last contributes: w0 + σ0(w1).
#define LAST(t, w0, w1) \
	VPADDD (64*(t))(SI), w0, w0; \
	SIGMA0(w1, w0)

#define SECOND(t) (64*(32+t))(SI)

// START fills a word of the state with the hash before the first block.
#define START(at, z) VPBROADCASTD (4*(at))(BX), z

// MIDDLE adds it, and keeps the sum in a row.
#define MIDDLE(at, row, z) \
	VPADDD.BCST (4*(at))(BX), z, z; \
	VMOVDQU32 z, (64*(64+row))(SI)

// func stretchAVX512(words *uint32, first, n int)
TEXT ·stretchAVX512(SB), NOSPLIT, $0-24
	MOVQ words+0(FP), SI
	MOVQ first+8(FP), CX
	MOVQ n+16(FP), DX
	ADDQ CX, DX
	LEAQ ·sha256K(SB), AX
	LEAQ ·sha256Start(SB), BX
	VMOVDQU32 (64*0)(SI), Z8
	VMOVDQU32 (64*1)(SI), Z9
	VMOVDQU32 (64*2)(SI), Z10
	VMOVDQU32 (64*3)(SI), Z11
	VMOVDQU32 (64*4)(SI), Z12
	VMOVDQU32 (64*5)(SI), Z13
	VMOVDQU32 (64*6)(SI), Z14
	VMOVDQU32 (64*7)(SI), Z15

round:
	START(3, Z0)
	START(2, Z1)
	START(7, Z2)
	START(6, Z3)
	START(1, Z4)
	START(0, Z5)
	START(5, Z6)
	START(4, Z7)
	USE(0, Z8, Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z7)
	USE(1, Z9, Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z6)
	USE(2, Z10, Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z5)
	USE(3, Z11, Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z4)
	USE(4, Z12, Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z3)
	USE(5, Z13, Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z2)
	USE(6, Z14, Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z1)
	USE(7, Z15, Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z0)
	KNOWN(8, Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z7)
	KNOWN(9, Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z6)
	KNOWN(10, Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z5)
	KNOWN(11, Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z4)
	KNOWN(12, Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z3)
	KNOWN(13, Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z2)
	KNOWN(14, Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z1)
	KNOWN(15, Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z0)
	LAST(16, Z8, Z9)
	USE(16, Z8, Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z7)
	LAST(17, Z9, Z10)
	USE(17, Z9, Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z6)
	LAST(18, Z10, Z11)
	SIGMA1(Z8, Z10)
	USE(18, Z10, Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z5)
	LAST(19, Z11, Z12)
	SIGMA1(Z9, Z11)
	USE(19, Z11, Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z4)
	LAST(20, Z12, Z13)
	SIGMA1(Z10, Z12)
	USE(20, Z12, Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z3)
	LAST(21, Z13, Z14)
	SIGMA1(Z11, Z13)
	USE(21, Z13, Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z2)
	LAST(22, Z14, Z15)
	SIGMA1(Z12, Z14)
	USE(22, Z14, Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z1)
	VPADDD Z8, Z15, Z15
	FIRST(23, Z15, Z15, Z13, Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z0)
	FIRST(24, Z16, Z9, Z14, Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z7)
	FIRST(25, Z17, Z10, Z15, Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z6)
	FIRST(26, Z18, Z11, Z16, Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z5)
	FIRST(27, Z19, Z12, Z17, Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z4)
	FIRST(28, Z20, Z13, Z18, Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z3)
	FIRST(29, Z21, Z14, Z19, Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z2)
	FIRST(30, Z22, Z15, Z20, Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z1)
	VPADDD (64*31)(SI), Z16, Z23
	SIGMA0(Z8, Z23)
	SIGMA1(Z21, Z23)
	USE(31, Z23, Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z0)
	STEPS(32)
	STEPS(48)
	MIDDLE(3, 0, Z0)
	MIDDLE(2, 1, Z1)
	MIDDLE(7, 2, Z2)
	MIDDLE(6, 3, Z3)
	MIDDLE(1, 4, Z4)
	MIDDLE(0, 5, Z5)
	MIDDLE(5, 6, Z6)
	MIDDLE(4, 7, Z7)

	MOVL CX, R8
	BSWAPL R8
	VPBROADCASTD R8, Z12
	KNOWN(32+0, Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z7)
	KNOWN(32+1, Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z6)
	KNOWN(32+2, Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z5)
	KNOWN(32+3, Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z4)
	VPADDD Z12, Z3, Z3
	KNOWN(32+4, Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z3)
	KNOWN(32+5, Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z2)
	KNOWN(32+6, Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z1)
	KNOWN(32+7, Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z0)
	KNOWN(32+8, Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z7)
	KNOWN(32+9, Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z6)
	KNOWN(32+10, Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z5)
	KNOWN(32+11, Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z4)
	KNOWN(32+12, Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z3)
	KNOWN(32+13, Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z2)
	KNOWN(32+14, Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z1)
	KNOWN(32+15, Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z0)
	VMOVDQU32 SECOND(16), Z8
	USE(16, Z8, Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z7)
	VMOVDQU32 SECOND(17), Z9
	USE(17, Z9, Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z6)
	VMOVDQU32 SECOND(18), Z10
	USE(18, Z10, Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z5)
	VMOVDQU32 SECOND(19), Z11
	SIGMA0(Z12, Z11)
	USE(19, Z11, Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z4)
	SIGMA1(Z10, Z12)
	USE(20, Z12, Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z3)
	VMOVDQU32 SECOND(21), Z13
	SIGMA1(Z11, Z13)
	USE(21, Z13, Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z2)
	VMOVDQU32 SECOND(22), Z14
	SIGMA1(Z12, Z14)
	USE(22, Z14, Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z1)
	VMOVDQU32 SECOND(23), Z15
	SIGMA1(Z13, Z15)
	USE(23, Z15, Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z0)
	VMOVDQA32 Z9, Z16
	SIGMA1(Z14, Z16)
	USE(24, Z16, Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z7)
	VMOVDQA32 Z10, Z17
	SIGMA1(Z15, Z17)
	USE(25, Z17, Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z6)
	VMOVDQA32 Z11, Z18
	SIGMA1(Z16, Z18)
	USE(26, Z18, Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z5)
	VMOVDQA32 Z12, Z19
	SIGMA1(Z17, Z19)
	USE(27, Z19, Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z4)
	VMOVDQA32 Z13, Z20
	SIGMA1(Z18, Z20)
	USE(28, Z20, Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z3)
	VMOVDQA32 Z14, Z21
	SIGMA1(Z19, Z21)
	USE(29, Z21, Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z2)
	VPADDD SECOND(30), Z15, Z22
	SIGMA1(Z20, Z22)
	USE(30, Z22, Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z1)
	VPADDD SECOND(31), Z16, Z23
	SIGMA1(Z21, Z23)
	USE(31, Z23, Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z0)
	STEPS(32)
	STEPS(48)
	VPADDD (64*64)(SI), Z0, Z8
	VPADDD (64*65)(SI), Z1, Z9
	VPADDD (64*66)(SI), Z2, Z10
	VPADDD (64*67)(SI), Z3, Z11
	VPADDD (64*68)(SI), Z4, Z12
	VPADDD (64*69)(SI), Z5, Z13
	VPADDD (64*70)(SI), Z6, Z14
	VPADDD (64*71)(SI), Z7, Z15

	INCQ CX
	CMPQ CX, DX
	JB   round

	VMOVDQU32 Z8, (64*0)(SI)
	VMOVDQU32 Z9, (64*1)(SI)
	VMOVDQU32 Z10, (64*2)(SI)
	VMOVDQU32 Z11, (64*3)(SI)
	VMOVDQU32 Z12, (64*4)(SI)
	VMOVDQU32 Z13, (64*5)(SI)
	VMOVDQU32 Z14, (64*6)(SI)
	VMOVDQU32 Z15, (64*7)(SI)
	VZEROALL
	VPXORD Z16, Z16, Z16
	VPXORD Z17, Z17, Z17
	VPXORD Z18, Z18, Z18
	VPXORD Z19, Z19, Z19
	VPXORD Z20, Z20, Z20
	VPXORD Z21, Z21, Z21
	VPXORD Z22, Z22, Z22
	VPXORD Z23, Z23, Z23
	VPXORD Z24, Z24, Z24
	VPXORD Z25, Z25, Z25
	VPXORD Z26, Z26, Z26
	VPXORD Z27, Z27, Z27
	VPXORD Z28, Z28, Z28
	VPXORD Z29, Z29, Z29
	VPXORD Z30, Z30, Z30
	VPXORD Z31, Z31, Z31
	RET
