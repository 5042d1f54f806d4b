//go:build !purego

#include "textflag.h"

// XTS with 128-bit registers, two groups of four blocks in turn. Round keys are
// memory operands as in aes_amd64.s.
//
//	AX   round keys, R10 the last one; R8 rounds
//	SI   encrypted tweaks of the sectors, R11 the first of them; DI blocks
//	R9   pairs of groups in a sector, CX left in this one, BX sectors left
//	X0 to X3    blocks
//	X4 to X7    tweaks of the first group: that of its first block, and those of
//	            the others XORed with it
//	X8 to X11   the same of the second group
//	X12         the first block's tweak XORed with the first or the last round key
//	X13, X14    intermediate
//	X15         the reducing polynomial, x^7+x^2+x+1
//
// While one group is encrypted, the tweaks that the other needs next are computed.

#define ROUND(OP, key) \
	OP key, X0, X0; \
	OP key, X1, X1; \
	OP key, X2, X2; \
	OP key, X3, X3

// TIMES_BITS sets to = from * x^n; srl is 64-n. What a half of a tweak loses goes
// to the other, and from the upper to the lower times the polynomial.
#define TIMES_BITS(srl, n, from, to) \
	VPSRLQ     srl, from, X13; \
	VPSLLQ     n, from, to; \
	VPCLMULQDQ $1, X15, X13, X14; \
	VPSLLDQ    $8, X13, X13; \
	VPXOR      X14, to, to; \
	VPXOR      X13, to, to

// TIMES_BYTE multiplies by x^8.
#define TIMES_BYTE(tweak) \
	VPSRLDQ    $15, tweak, X13; \
	VPSLLDQ    $1, tweak, tweak; \
	VPCLMULQDQ $0, X15, X13, X13; \
	VPXOR      X13, tweak, tweak

// NEXT1 to NEXT4 of a group are the other group's tweaks in the same sector, and at
// the start of a sector.
#define FIRST1 TIMES_BYTE(X4)
#define FIRST2 TIMES_BYTE(X5)
#define FIRST3 TIMES_BYTE(X6)
#define FIRST4 TIMES_BYTE(X7)
#define SECOND1 TIMES_BYTE(X8)
#define SECOND2 TIMES_BYTE(X9)
#define SECOND3 TIMES_BYTE(X10)
#define SECOND4 TIMES_BYTE(X11)
#define NEWFIRST1 VMOVDQU (SI), X4; ADDQ $16, SI
#define NEWFIRST2 TIMES_BITS($63, $1, X4, X5); VPXOR X4, X5, X5
#define NEWFIRST3 TIMES_BITS($62, $2, X4, X6); VPXOR X4, X6, X6
#define NEWFIRST4 TIMES_BITS($61, $3, X4, X7); VPXOR X4, X7, X7
#define NEWSECOND1 TIMES_BITS($60, $4, X4, X8)
#define NEWSECOND2 TIMES_BITS($60, $4, X5, X9)
#define NEWSECOND3 TIMES_BITS($60, $4, X6, X10)
#define NEWSECOND4 TIMES_BITS($60, $4, X7, X11)

#define WHITEN(off, t0, t1, t2, t3) \
	VPXOR (AX), t0, X12; \
	VPXOR X12, t1, X1; \
	VPXOR X12, t2, X2; \
	VPXOR X12, t3, X3; \
	VPXOR off(DI), X12, X0; \
	VPXOR off+16(DI), X1, X1; \
	VPXOR off+32(DI), X2, X2; \
	VPXOR off+48(DI), X3, X3

#define ROUNDS(OP, NEXT1, NEXT2, NEXT3, NEXT4) \
	ROUND(OP, 64(AX)); \
	NEXT1; \
	ROUND(OP, 128(AX)); \
	ROUND(OP, 192(AX)); \
	NEXT2; \
	ROUND(OP, 256(AX)); \
	ROUND(OP, 320(AX)); \
	NEXT3; \
	ROUND(OP, 384(AX)); \
	ROUND(OP, 448(AX)); \
	NEXT4; \
	ROUND(OP, 512(AX)); \
	ROUND(OP, 576(AX))

#define ROUNDS256(OP) \
	ROUND(OP, 640(AX)); \
	ROUND(OP, 704(AX)); \
	ROUND(OP, 768(AX)); \
	ROUND(OP, 832(AX))

#define FINISH(OPLAST, off, t0, t1, t2, t3) \
	VPXOR   (R10), t0, X12; \
	OPLAST  X12, X0, X0; \
	OPLAST  X12, X1, X1; \
	OPLAST  X12, X2, X2; \
	OPLAST  X12, X3, X3; \
	VPXOR   t1, X1, X1; \
	VPXOR   t2, X2, X2; \
	VPXOR   t3, X3, X3; \
	VMOVDQU X0, off(DI); \
	VMOVDQU X1, off+16(DI); \
	VMOVDQU X2, off+32(DI); \
	VMOVDQU X3, off+48(DI)

#define XTS(OP, OPLAST) \
	MOVQ keys+0(FP), AX; \
	MOVQ rounds+8(FP), R8; \
	MOVQ tweaks+16(FP), SI; \
	MOVQ sectors+24(FP), DI; \
	MOVQ sectorSize+32(FP), R9; \
	MOVQ count+40(FP), BX; \
	MOVQ SI, R11; \
	SHRQ $7, R9; \
	MOVQ R8, R10; \
	SHLQ $6, R10; \
	ADDQ AX, R10; \
	MOVQ $0x87, R12; \
	VMOVQ R12, X15; \
	NEWFIRST1; \
	NEWFIRST2; \
	NEWFIRST3; \
	NEWFIRST4; \
sector: \
	MOVQ R9, CX; \
	WHITEN(0, X4, X5, X6, X7); \
	ROUNDS(OP, NEWSECOND1, NEWSECOND2, NEWSECOND3, NEWSECOND4); \
	JMP  first; \
pair: \
	WHITEN(0, X4, X5, X6, X7); \
	ROUNDS(OP, SECOND1, SECOND2, SECOND3, SECOND4); \
first: \
	CMPQ R8, $10; \
	JE   firstlast; \
	ROUNDS256(OP); \
firstlast: \
	FINISH(OPLAST, 0, X4, X5, X6, X7); \
	WHITEN(64, X8, X9, X10, X11); \
	DECQ CX; \
	JZ   new; \
	ROUNDS(OP, FIRST1, FIRST2, FIRST3, FIRST4); \
	JMP  second; \
new: \
	DECQ BX; \
	CMOVQEQ R11, SI; \
	ROUNDS(OP, NEWFIRST1, NEWFIRST2, NEWFIRST3, NEWFIRST4); \
second: \
	CMPQ R8, $10; \
	JE   secondlast; \
	ROUNDS256(OP); \
secondlast: \
	FINISH(OPLAST, 64, X8, X9, X10, X11); \
	ADDQ $128, DI; \
	TESTQ CX, CX; \
	JNZ  pair; \
	TESTQ BX, BX; \
	JNZ  sector; \
	VZEROALL; \
	RET

// func encryptXTSAESNI(keys *byte, rounds int, tweaks, sectors *byte, sectorSize, count int)
TEXT ·encryptXTSAESNI(SB), NOSPLIT, $0-48
	XTS(VAESENC, VAESENCLAST)

// func decryptXTSAESNI(keys *byte, rounds int, tweaks, sectors *byte, sectorSize, count int)
TEXT ·decryptXTSAESNI(SB), NOSPLIT, $0-48
	XTS(VAESDEC, VAESDECLAST)
