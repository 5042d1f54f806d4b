//go:build !purego

#include "textflag.h"

// Round keys are memory operands throughout, so that no register ever holds one;
// they are 64 bytes apart, see keyStride. In the first two functions: AX round keys, R9 rounds-1, DI blocks, SI pre, DX post,
// BX blocks left, R8 round key in use, CX rounds left.

#define LOAD_ARGS \
	MOVQ keys+0(FP), AX; \
	MOVQ rounds+8(FP), R9; \
	MOVQ b+16(FP), DI; \
	MOVQ pre+24(FP), SI; \
	MOVQ post+32(FP), DX; \
	MOVQ blocks+40(FP), BX; \
	DECQ R9

#define LOAD8(from) \
	VMOVDQU 0(from), X0; \
	VMOVDQU 16(from), X1; \
	VMOVDQU 32(from), X2; \
	VMOVDQU 48(from), X3; \
	VMOVDQU 64(from), X4; \
	VMOVDQU 80(from), X5; \
	VMOVDQU 96(from), X6; \
	VMOVDQU 112(from), X7

#define STORE8(to) \
	VMOVDQU X0, 0(to); \
	VMOVDQU X1, 16(to); \
	VMOVDQU X2, 32(to); \
	VMOVDQU X3, 48(to); \
	VMOVDQU X4, 64(to); \
	VMOVDQU X5, 80(to); \
	VMOVDQU X6, 96(to); \
	VMOVDQU X7, 112(to)

#define MASK8(from) \
	VPXOR 0(from), X0, X0; \
	VPXOR 16(from), X1, X1; \
	VPXOR 32(from), X2, X2; \
	VPXOR 48(from), X3, X3; \
	VPXOR 64(from), X4, X4; \
	VPXOR 80(from), X5, X5; \
	VPXOR 96(from), X6, X6; \
	VPXOR 112(from), X7, X7

#define ROUND8(OP, key) \
	OP (key), X0, X0; \
	OP (key), X1, X1; \
	OP (key), X2, X2; \
	OP (key), X3, X3; \
	OP (key), X4, X4; \
	OP (key), X5, X5; \
	OP (key), X6, X6; \
	OP (key), X7, X7

#define NEXT_KEY \
	ADDQ $64, R8

// CRYPT is the body of both functions.
#define CRYPT(OP, OPLAST) \
	LOAD_ARGS; \
eight: \
	CMPQ BX, $8; \
	JB   one; \
	LOAD8(DI); \
	MASK8(SI); \
	MOVQ AX, R8; \
	ROUND8(VPXOR, R8); \
	NEXT_KEY; \
	MOVQ R9, CX; \
	TESTQ CX, CX; \
	JZ   eightlast; \
eightround: \
	ROUND8(OP, R8); \
	NEXT_KEY; \
	DECQ CX; \
	JNZ  eightround; \
eightlast: \
	ROUND8(OPLAST, R8); \
	MASK8(DX); \
	STORE8(DI); \
	ADDQ $128, DI; \
	ADDQ $128, SI; \
	ADDQ $128, DX; \
	SUBQ $8, BX; \
	JMP  eight; \
one: \
	TESTQ BX, BX; \
	JZ   done; \
	VMOVDQU (DI), X0; \
	VPXOR (SI), X0, X0; \
	MOVQ AX, R8; \
	VPXOR (R8), X0, X0; \
	NEXT_KEY; \
	MOVQ R9, CX; \
	TESTQ CX, CX; \
	JZ   onelast; \
oneround: \
	OP   (R8), X0, X0; \
	NEXT_KEY; \
	DECQ CX; \
	JNZ  oneround; \
onelast: \
	OPLAST (R8), X0, X0; \
	VPXOR (DX), X0, X0; \
	VMOVDQU X0, (DI); \
	ADDQ $16, DI; \
	ADDQ $16, SI; \
	ADDQ $16, DX; \
	DECQ BX; \
	JMP  one; \
done: \
	VZEROALL; \
	RET

// func encryptBlocks(keys *byte, rounds int, b, pre, post *byte, blocks int)
TEXT ·encryptBlocks(SB), NOSPLIT, $0-48
	CRYPT(VAESENC, VAESENCLAST)

// func decryptBlocks(keys *byte, rounds int, b, pre, post *byte, blocks int)
TEXT ·decryptBlocks(SB), NOSPLIT, $0-48
	CRYPT(VAESDEC, VAESDECLAST)
