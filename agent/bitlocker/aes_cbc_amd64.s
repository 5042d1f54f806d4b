//go:build !purego

#include "textflag.h"

// CBC with 128-bit registers. Round keys are memory operands as in aes_amd64.s.
//
//	AX   round keys, R10 the last one; R8 rounds
//	SI   initialization vectors; DI blocks
//	R9   bytes in a sector; BX sectors left, CX bytes left in this one
//	X0 to X7  blocks

#define LOAD_ARGS \
	MOVQ keys+0(FP), AX; \
	MOVQ rounds+8(FP), R8; \
	MOVQ ivs+16(FP), SI; \
	MOVQ sectors+24(FP), DI; \
	MOVQ sectorSize+32(FP), R9; \
	MOVQ count+40(FP), BX; \
	MOVQ R8, R10; \
	SHLQ $6, R10; \
	ADDQ AX, R10

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
#define ROUNDS(ROUND, OP, last) \
	ROUND(OP, 64(AX)); \
	ROUND(OP, 128(AX)); \
	ROUND(OP, 192(AX)); \
	ROUND(OP, 256(AX)); \
	ROUND(OP, 320(AX)); \
	ROUND(OP, 384(AX)); \
	ROUND(OP, 448(AX)); \
	ROUND(OP, 512(AX)); \
	ROUND(OP, 576(AX)); \
	CMPQ R8, $10; \
	JE   last; \
	ROUND(OP, 640(AX)); \
	ROUND(OP, 704(AX)); \
	ROUND(OP, 768(AX)); \
	ROUND(OP, 832(AX)); \
last:

// func encryptCBCAESNI(keys *byte, rounds int, ivs, sectors *byte, sectorSize, count int)
//
// A block has to wait for the one before, but not for those of other sectors: as
// long as there are eight sectors, one block of each is encrypted together. R11,
// R12 and R13 are three, five and seven times R9.
TEXT ·encryptCBCAESNI(SB), NOSPLIT, $0-48
	LOAD_ARGS
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
	ROUNDS(ROUND8, VAESENC, eightlast)
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
	ROUNDS(ROUND1, VAESENC, onelast)
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

// func decryptCBCAESNI(keys *byte, rounds int, ivs, sectors *byte, sectorSize, count int)
//
// X8 is the ciphertext of the block before, which the first of eight is XORed with;
// the others find theirs still in memory.
TEXT ·decryptCBCAESNI(SB), NOSPLIT, $0-48
	LOAD_ARGS

sector:
	VMOVDQU (SI), X8
	ADDQ $16, SI
	MOVQ R9, CX

blocks:
	VMOVDQU 0(DI), X0
	VMOVDQU 16(DI), X1
	VMOVDQU 32(DI), X2
	VMOVDQU 48(DI), X3
	VMOVDQU 64(DI), X4
	VMOVDQU 80(DI), X5
	VMOVDQU 96(DI), X6
	VMOVDQU 112(DI), X7
	ROUND8(VPXOR, (AX))
	ROUNDS(ROUND8, VAESDEC, last)
	ROUND8(VAESDECLAST, (R10))
	VPXOR X8, X0, X0
	VPXOR 0(DI), X1, X1
	VPXOR 16(DI), X2, X2
	VPXOR 32(DI), X3, X3
	VPXOR 48(DI), X4, X4
	VPXOR 64(DI), X5, X5
	VPXOR 80(DI), X6, X6
	VPXOR 96(DI), X7, X7
	VMOVDQU 112(DI), X8
	VMOVDQU X0, 0(DI)
	VMOVDQU X1, 16(DI)
	VMOVDQU X2, 32(DI)
	VMOVDQU X3, 48(DI)
	VMOVDQU X4, 64(DI)
	VMOVDQU X5, 80(DI)
	VMOVDQU X6, 96(DI)
	VMOVDQU X7, 112(DI)
	ADDQ $128, DI
	SUBQ $128, CX
	JNZ  blocks
	DECQ BX
	JNZ  sector
	VZEROALL
	RET
