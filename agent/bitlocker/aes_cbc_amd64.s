//go:build !purego

#include "textflag.h"

// CBC encryption with 128-bit registers. Round keys are memory operands as in
// aes_amd64.s.
//
//	AX   round keys, R10 the last one; R8 rounds
//	SI   initialization vectors; DI blocks
//	R9   bytes in a sector; BX sectors left, CX bytes left in this one
//	X0 to X7  blocks

#define ROUND8(OP, key) \
	OP key, X0, X0; \
	OP key, X1, X1; \
	OP key, X2, X2; \
	OP key, X3, X3; \
	OP key, X4, X4; \
	OP key, X5, X5; \
	OP key, X6, X6; \
	OP key, X7, X7

#define ROUND1(OP, key) \
	OP key, X0, X0

// ROUNDS are all but the first and the last.
#define ROUNDS(ROUND, last) \
	ROUND(VAESENC, 64(AX)); \
	ROUND(VAESENC, 128(AX)); \
	ROUND(VAESENC, 192(AX)); \
	ROUND(VAESENC, 256(AX)); \
	ROUND(VAESENC, 320(AX)); \
	ROUND(VAESENC, 384(AX)); \
	ROUND(VAESENC, 448(AX)); \
	ROUND(VAESENC, 512(AX)); \
	ROUND(VAESENC, 576(AX)); \
	CMPQ R8, $10; \
	JE   last; \
	ROUND(VAESENC, 640(AX)); \
	ROUND(VAESENC, 704(AX)); \
	ROUND(VAESENC, 768(AX)); \
	ROUND(VAESENC, 832(AX)); \
last:

// func encryptCBCAESNI(keys *byte, rounds int, ivs, sectors *byte, sectorSize, count int)
//
// A block has to wait for the one before, but not for those of other sectors: as
// long as there are eight sectors, one block of each is encrypted together. R11,
// R12 and R13 are three, five and seven times R9.
TEXT ·encryptCBCAESNI(SB), NOSPLIT, $0-48
	MOVQ keys+0(FP), AX
	MOVQ rounds+8(FP), R8
	MOVQ ivs+16(FP), SI
	MOVQ sectors+24(FP), DI
	MOVQ sectorSize+32(FP), R9
	MOVQ count+40(FP), BX
	MOVQ R8, R10
	SHLQ $6, R10
	ADDQ AX, R10
	LEAQ (R9)(R9*2), R11
	LEAQ (R9)(R9*4), R12
	LEAQ (R11)(R9*4), R13

eight:
	CMPQ BX, $8
	JB   one
	VMOVDQU 0(SI), X0
	VMOVDQU 16(SI), X1
	VMOVDQU 32(SI), X2
	VMOVDQU 48(SI), X3
	VMOVDQU 64(SI), X4
	VMOVDQU 80(SI), X5
	VMOVDQU 96(SI), X6
	VMOVDQU 112(SI), X7
	ADDQ $128, SI
	MOVQ R9, CX

eightblocks:
	VPXOR (DI), X0, X0
	VPXOR (DI)(R9*1), X1, X1
	VPXOR (DI)(R9*2), X2, X2
	VPXOR (DI)(R11*1), X3, X3
	VPXOR (DI)(R9*4), X4, X4
	VPXOR (DI)(R12*1), X5, X5
	VPXOR (DI)(R11*2), X6, X6
	VPXOR (DI)(R13*1), X7, X7
	ROUND8(VPXOR, (AX))
	ROUNDS(ROUND8, eightlast)
	ROUND8(VAESENCLAST, (R10))
	VMOVDQU X0, (DI)
	VMOVDQU X1, (DI)(R9*1)
	VMOVDQU X2, (DI)(R9*2)
	VMOVDQU X3, (DI)(R11*1)
	VMOVDQU X4, (DI)(R9*4)
	VMOVDQU X5, (DI)(R12*1)
	VMOVDQU X6, (DI)(R11*2)
	VMOVDQU X7, (DI)(R13*1)
	ADDQ $16, DI
	SUBQ $16, CX
	JNZ  eightblocks
	ADDQ R13, DI
	SUBQ $8, BX
	JMP  eight

one:
	TESTQ BX, BX
	JZ   done
	VMOVDQU (SI), X0
	ADDQ $16, SI
	MOVQ R9, CX

oneblock:
	VMOVDQU (DI), X1
	VPXOR (AX), X1, X1
	VPXOR X1, X0, X0
	ROUNDS(ROUND1, onelast)
	ROUND1(VAESENCLAST, (R10))
	VMOVDQU X0, (DI)
	ADDQ $16, DI
	SUBQ $16, CX
	JNZ  oneblock
	DECQ BX
	JMP  one

done:
	VZEROALL
	RET
