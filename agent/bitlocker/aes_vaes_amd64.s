//go:build !purego

#include "textflag.h"

// AES with 512-bit registers, in groups of 32 blocks (512 bytes). Round keys are
// memory operands as in aes_amd64.s, there four times, see keyStride.

// XTS uses registers so:
//
//	AX   round keys, R10 the last one; R8 rounds
//	SI   encrypted tweaks of the sectors, R11 the first of them; DI blocks
//	R9   groups in a sector, CX left in this one, BX sectors left
//	Z0 to Z7    blocks, four in each
//	Z8          tweaks of those in Z0
//	Z9 to Z15   tweaks of the others, XORed with Z8
//	Z16 to Z23  the same for the next group
//	Z24, Z25    Z8 XORed with the first and the last round key
//	Z26 to Z28  intermediate
//	Z31         the reducing polynomial, x^7+x^2+x+1, in each lane
//
// That the tweaks in Z9 to Z15 lack those in Z8 lets one pair of registers stand
// for the first and last keys: a processor that loads 64 bytes a cycle has no time
// for two more memory operands for each four blocks. The next group's tweaks
// are computed between the rounds, which leave the other units idle.

// ROUND is a round with the given key of all blocks.
#define ROUND(OP, key) \
	OP key, Z0, Z0; \
	OP key, Z1, Z1; \
	OP key, Z2, Z2; \
	OP key, Z3, Z3; \
	OP key, Z4, Z4; \
	OP key, Z5, Z5; \
	OP key, Z6, Z6; \
	OP key, Z7, Z7

// TIMES_BITS sets to = from * x^n for each lane's own n below 64: srl is 64-n and
// sll is n. What a half of a tweak loses goes to the other, and from the upper to
// the lower times the polynomial.
#define TIMES_BITS(SRL, srl, SLL, sll, from, to) \
	SRL        srl, from, Z26; \
	SLL        sll, from, to; \
	VPCLMULQDQ $1, Z31, Z26, Z27; \
	VPSLLDQ    $8, Z26, Z26; \
	VPTERNLOGQ $0x96, Z26, Z27, to

// TIMES_BYTES sets to = from * x^8n for n up to 4. The unit that multiplies is one of
// those for AES; what is times the polynomial here is the sum of four shifts instead,
// two of which are additions.
#define TIMES_BYTES(n, from, to) \
	VPSRLDQ    $(16-n), from, Z26; \
	VPSLLDQ    $n, from, to; \
	VPADDQ     Z26, Z26, Z27; \
	VPTERNLOGQ $0x96, Z26, Z27, to; \
	VPADDQ     Z27, Z27, Z27; \
	VPSLLQ     $7, Z26, Z26; \
	VPTERNLOGQ $0x96, Z26, Z27, to

// TIMES_BYTES_PLUS sets to = from * x^8n + plus. It multiplies, since a new sector
// already needs many shifts.
#define TIMES_BYTES_PLUS(n, from, plus, to) \
	VPSRLDQ    $(16-n), from, Z26; \
	VPSLLDQ    $n, from, to; \
	VPCLMULQDQ $0, Z31, Z26, Z26; \
	VPTERNLOGQ $0x96, plus, Z26, to

// NEXT1 to NEXT8 compute the next group's tweaks; these, in the same sector.
#define SAME1 TIMES_BYTES(4, Z8, Z16)
#define SAME2 TIMES_BYTES(4, Z9, Z17)
#define SAME3 TIMES_BYTES(4, Z10, Z18)
#define SAME4 TIMES_BYTES(4, Z11, Z19)
#define SAME5 TIMES_BYTES(4, Z12, Z20)
#define SAME6 TIMES_BYTES(4, Z13, Z21)
#define SAME7 TIMES_BYTES(4, Z14, Z22)
#define SAME8 TIMES_BYTES(4, Z15, Z23)

// And these in the next one.
#define NEW1 \
	VBROADCASTI32X4 (SI), Z16; \
	ADDQ $16, SI; \
	TIMES_BITS(VPSRLVQ, shifts<>+64(SB), VPSLLVQ, shifts<>+0(SB), Z16, Z16)
#define NEW2 TIMES_BITS(VPSRLQ, $60, VPSLLQ, $4, Z16, Z28); VPXORQ Z16, Z28, Z17
#define NEW3 TIMES_BYTES_PLUS(1, Z16, Z16, Z18)
#define NEW4 TIMES_BYTES_PLUS(1, Z28, Z16, Z19)
#define NEW5 TIMES_BYTES_PLUS(2, Z16, Z16, Z20)
#define NEW6 TIMES_BYTES_PLUS(2, Z28, Z16, Z21)
#define NEW7 TIMES_BYTES_PLUS(3, Z16, Z16, Z22)
#define NEW8 TIMES_BYTES_PLUS(3, Z28, Z16, Z23)

#define WHITEN(off, tweak, block) \
	VMOVDQU64  off(DI), block; \
	VPTERNLOGQ $0x96, Z24, tweak, block

#define FINISH(off, tweak, block, next) \
	VPXORQ    tweak, block, block; \
	VMOVDQU64 block, off(DI); \
	VMOVDQA64 next, tweak

#define ROUNDS(OP, NEXT1, NEXT2, NEXT3, NEXT4, NEXT5, NEXT6, NEXT7, NEXT8) \
	ROUND(OP, 64(AX)); \
	NEXT1; \
	ROUND(OP, 128(AX)); \
	NEXT2; \
	ROUND(OP, 192(AX)); \
	NEXT3; \
	ROUND(OP, 256(AX)); \
	NEXT4; \
	ROUND(OP, 320(AX)); \
	NEXT5; \
	ROUND(OP, 384(AX)); \
	NEXT6; \
	ROUND(OP, 448(AX)); \
	NEXT7; \
	ROUND(OP, 512(AX)); \
	NEXT8; \
	ROUND(OP, 576(AX))

#define XTS(OP, OPLAST) \
	MOVQ keys+0(FP), AX; \
	MOVQ rounds+8(FP), R8; \
	MOVQ tweaks+16(FP), SI; \
	MOVQ sectors+24(FP), DI; \
	MOVQ sectorSize+32(FP), R9; \
	MOVQ count+40(FP), BX; \
	MOVQ SI, R11; \
	SHRQ $9, R9; \
	MOVQ R8, R10; \
	SHLQ $6, R10; \
	ADDQ AX, R10; \
	VBROADCASTI32X4 shifts<>+128(SB), Z31; \
	NEW1; \
	NEW2; \
	NEW3; \
	NEW4; \
	NEW5; \
	NEW6; \
	NEW7; \
	NEW8; \
	VMOVDQA64 Z16, Z8; \
	VMOVDQA64 Z17, Z9; \
	VMOVDQA64 Z18, Z10; \
	VMOVDQA64 Z19, Z11; \
	VMOVDQA64 Z20, Z12; \
	VMOVDQA64 Z21, Z13; \
	VMOVDQA64 Z22, Z14; \
	VMOVDQA64 Z23, Z15; \
	MOVQ R9, CX; \
group: \
	VPXORQ (AX), Z8, Z24; \
	VPXORQ (R10), Z8, Z25; \
	VPXORQ (DI), Z24, Z0; \
	WHITEN(64, Z9, Z1); \
	WHITEN(128, Z10, Z2); \
	WHITEN(192, Z11, Z3); \
	WHITEN(256, Z12, Z4); \
	WHITEN(320, Z13, Z5); \
	WHITEN(384, Z14, Z6); \
	WHITEN(448, Z15, Z7); \
	DECQ CX; \
	JZ   new; \
	ROUNDS(OP, SAME1, SAME2, SAME3, SAME4, SAME5, SAME6, SAME7, SAME8); \
	JMP  more; \
new: \
	MOVQ R9, CX; \
	DECQ BX; \
	CMOVQEQ R11, SI; \
	ROUNDS(OP, NEW1, NEW2, NEW3, NEW4, NEW5, NEW6, NEW7, NEW8); \
more: \
	CMPQ R8, $10; \
	JE   last; \
	ROUND(OP, 640(AX)); \
	ROUND(OP, 704(AX)); \
	ROUND(OP, 768(AX)); \
	ROUND(OP, 832(AX)); \
last: \
	ROUND(OPLAST, Z25); \
	VMOVDQU64 Z0, (DI); \
	VMOVDQA64 Z16, Z8; \
	FINISH(64, Z9, Z1, Z17); \
	FINISH(128, Z10, Z2, Z18); \
	FINISH(192, Z11, Z3, Z19); \
	FINISH(256, Z12, Z4, Z20); \
	FINISH(320, Z13, Z5, Z21); \
	FINISH(384, Z14, Z6, Z22); \
	FINISH(448, Z15, Z7, Z23); \
	ADDQ $512, DI; \
	TESTQ BX, BX; \
	JNZ  group; \
	VPXORQ Z16, Z16, Z16; \
	VPXORQ Z17, Z17, Z17; \
	VPXORQ Z18, Z18, Z18; \
	VPXORQ Z19, Z19, Z19; \
	VPXORQ Z20, Z20, Z20; \
	VPXORQ Z21, Z21, Z21; \
	VPXORQ Z22, Z22, Z22; \
	VPXORQ Z23, Z23, Z23; \
	VPXORQ Z24, Z24, Z24; \
	VPXORQ Z25, Z25, Z25; \
	VPXORQ Z26, Z26, Z26; \
	VPXORQ Z27, Z27, Z27; \
	VPXORQ Z28, Z28, Z28; \
	VZEROALL; \
	RET

// Shifts of the four lanes: left by 0 to 3 bits, and right for what that carries
// out. Then the polynomial.
DATA shifts<>+0(SB)/8, $0
DATA shifts<>+8(SB)/8, $0
DATA shifts<>+16(SB)/8, $1
DATA shifts<>+24(SB)/8, $1
DATA shifts<>+32(SB)/8, $2
DATA shifts<>+40(SB)/8, $2
DATA shifts<>+48(SB)/8, $3
DATA shifts<>+56(SB)/8, $3
DATA shifts<>+64(SB)/8, $64
DATA shifts<>+72(SB)/8, $64
DATA shifts<>+80(SB)/8, $63
DATA shifts<>+88(SB)/8, $63
DATA shifts<>+96(SB)/8, $62
DATA shifts<>+104(SB)/8, $62
DATA shifts<>+112(SB)/8, $61
DATA shifts<>+120(SB)/8, $61
DATA shifts<>+128(SB)/8, $0x87
DATA shifts<>+136(SB)/8, $0
GLOBL shifts<>(SB), RODATA|NOPTR, $144

// func encryptXTSVAES(keys *byte, rounds int, tweaks, sectors *byte, sectorSize, count int)
TEXT ·encryptXTSVAES(SB), NOSPLIT, $0-48
	XTS(VAESENC, VAESENCLAST)

// func decryptXTSVAES(keys *byte, rounds int, tweaks, sectors *byte, sectorSize, count int)
TEXT ·decryptXTSVAES(SB), NOSPLIT, $0-48
	XTS(VAESDEC, VAESDECLAST)

// func decryptCBCVAES(keys *byte, rounds int, ivs, sectors *byte, sectorSize, count int)
//
// Z8 to Z15 are what the blocks are XORed with: the ciphertext one block before,
// which for the first block is at the end of Z16.
TEXT ·decryptCBCVAES(SB), NOSPLIT, $0-48
	MOVQ keys+0(FP), AX
	MOVQ rounds+8(FP), R8
	MOVQ ivs+16(FP), SI
	MOVQ sectors+24(FP), DI
	MOVQ sectorSize+32(FP), R9
	MOVQ count+40(FP), BX
	MOVQ R8, R10
	SHLQ $6, R10
	ADDQ AX, R10

sector:
	VBROADCASTI32X4 (SI), Z16
	ADDQ $16, SI
	MOVQ R9, CX

group:
	VMOVDQU64 0(DI), Z0
	VMOVDQU64 64(DI), Z1
	VMOVDQU64 128(DI), Z2
	VMOVDQU64 192(DI), Z3
	VMOVDQU64 256(DI), Z4
	VMOVDQU64 320(DI), Z5
	VMOVDQU64 384(DI), Z6
	VMOVDQU64 448(DI), Z7
	VALIGNQ $6, Z16, Z0, Z8
	VALIGNQ $6, Z0, Z1, Z9
	VALIGNQ $6, Z1, Z2, Z10
	VALIGNQ $6, Z2, Z3, Z11
	VALIGNQ $6, Z3, Z4, Z12
	VALIGNQ $6, Z4, Z5, Z13
	VALIGNQ $6, Z5, Z6, Z14
	VALIGNQ $6, Z6, Z7, Z15
	VMOVDQA64 Z7, Z16
	ROUND(VPXORQ, (AX))
	ROUND(VAESDEC, 64(AX))
	ROUND(VAESDEC, 128(AX))
	ROUND(VAESDEC, 192(AX))
	ROUND(VAESDEC, 256(AX))
	ROUND(VAESDEC, 320(AX))
	ROUND(VAESDEC, 384(AX))
	ROUND(VAESDEC, 448(AX))
	ROUND(VAESDEC, 512(AX))
	ROUND(VAESDEC, 576(AX))
	CMPQ R8, $10
	JE   last
	ROUND(VAESDEC, 640(AX))
	ROUND(VAESDEC, 704(AX))
	ROUND(VAESDEC, 768(AX))
	ROUND(VAESDEC, 832(AX))

last:
	ROUND(VAESDECLAST, (R10))
	VPXORQ Z8, Z0, Z0
	VPXORQ Z9, Z1, Z1
	VPXORQ Z10, Z2, Z2
	VPXORQ Z11, Z3, Z3
	VPXORQ Z12, Z4, Z4
	VPXORQ Z13, Z5, Z5
	VPXORQ Z14, Z6, Z6
	VPXORQ Z15, Z7, Z7
	VMOVDQU64 Z0, 0(DI)
	VMOVDQU64 Z1, 64(DI)
	VMOVDQU64 Z2, 128(DI)
	VMOVDQU64 Z3, 192(DI)
	VMOVDQU64 Z4, 256(DI)
	VMOVDQU64 Z5, 320(DI)
	VMOVDQU64 Z6, 384(DI)
	VMOVDQU64 Z7, 448(DI)
	ADDQ $512, DI
	SUBQ $512, CX
	JNZ  group
	DECQ BX
	JNZ  sector
	VZEROALL
	RET

// NUMBER_ROUND is a round of the four blocks in Z0.
#define NUMBER_ROUND(OP, key) \
	OP key, Z0, Z0

// func encryptNumbersVAES(keys *byte, rounds int, dst *byte, first, step uint64, count int)
//
// The step is less than 2^32. Z1 are the next four numbers, Z2 is what they grow by, K1 selects the lower half
// of each block, and K2 the blocks that are wanted. The blocks of one turn do
// not wait for those of the one before.
TEXT ·encryptNumbersVAES(SB), NOSPLIT, $0-48
	MOVQ keys+0(FP), AX
	MOVQ rounds+8(FP), R8
	MOVQ dst+16(FP), DI
	MOVQ first+24(FP), SI
	MOVQ step+32(FP), DX
	MOVQ count+40(FP), BX
	MOVQ R8, R10
	SHLQ $6, R10
	ADDQ AX, R10
	MOVQ $0x55, CX
	KMOVW CX, K1
	VPBROADCASTQ.Z DX, K1, Z2
	VPMULUDQ lanes<>(SB), Z2, Z1
	VPBROADCASTQ.Z SI, K1, Z3
	VPADDQ Z3, Z1, Z1
	VPSLLQ $2, Z2, Z2

four:
	MOVQ $4, CX
	CMPQ BX, CX
	CMOVQLT BX, CX
	ADDQ CX, CX
	MOVQ $1, R9
	SHLQ CX, R9
	DECQ R9
	KMOVW R9, K2
	VMOVDQA64 Z1, Z0
	VPADDQ Z2, Z1, Z1
	NUMBER_ROUND(VPXORQ, (AX))
	NUMBER_ROUND(VAESENC, 64(AX))
	NUMBER_ROUND(VAESENC, 128(AX))
	NUMBER_ROUND(VAESENC, 192(AX))
	NUMBER_ROUND(VAESENC, 256(AX))
	NUMBER_ROUND(VAESENC, 320(AX))
	NUMBER_ROUND(VAESENC, 384(AX))
	NUMBER_ROUND(VAESENC, 448(AX))
	NUMBER_ROUND(VAESENC, 512(AX))
	NUMBER_ROUND(VAESENC, 576(AX))
	CMPQ R8, $10
	JE   numberslast
	NUMBER_ROUND(VAESENC, 640(AX))
	NUMBER_ROUND(VAESENC, 704(AX))
	NUMBER_ROUND(VAESENC, 768(AX))
	NUMBER_ROUND(VAESENC, 832(AX))

numberslast:
	NUMBER_ROUND(VAESENCLAST, (R10))
	VMOVDQU64 Z0, K2, (DI)
	ADDQ $64, DI
	SUBQ $4, BX
	JG   four
	VZEROALL
	RET

DATA lanes<>+0(SB)/8, $0
DATA lanes<>+8(SB)/8, $0
DATA lanes<>+16(SB)/8, $1
DATA lanes<>+24(SB)/8, $0
DATA lanes<>+32(SB)/8, $2
DATA lanes<>+40(SB)/8, $0
DATA lanes<>+48(SB)/8, $3
DATA lanes<>+56(SB)/8, $0
GLOBL lanes<>(SB), RODATA|NOPTR, $64
