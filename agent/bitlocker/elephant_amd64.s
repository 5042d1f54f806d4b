//go:build !purego

#include "textflag.h"

// The diffuser on eight sectors together, one in each lane of a 256-bit register.
//
//	DI   words, 32 bytes (a word of each sector) apart; R8 offset of the current one
//	R9   size of it all less one, which wraps offsets; R10, R11 offsets of others
//	CX   passes left
//	Y0, Y1   the words two and one before (A) or behind (B) the current one, where a
//	         pass has just changed those
//	Y2 to Y4 intermediate
//
// Words are taken four at a time, since their rotations repeat after four.

#define ROTATE(n) \
	VPSLLD $n, Y2, Y3; \
	VPSRLD $(32-n), Y2, Y2; \
	VPXOR  Y3, Y2, Y2

#define KEEP

// OFFSET sets to to the offset of a word n bytes from the current one.
#define OFFSET(n, to) \
	LEAQ n(R8), to; \
	ANDQ R9, to

// ADD_NEAR adds to the word at off what near, which it becomes, and that at far give.
#define ADD_NEAR(off, far, ROT, near) \
	OFFSET(off+far, R10); \
	VMOVDQU (DI)(R10*1), Y2; \
	ROT; \
	VPXOR   Y2, near, near; \
	VPADDD  off(DI)(R8*1), near, near; \
	VMOVDQU near, off(DI)(R8*1)

#define SUBTRACT_NEAR(off, far, ROT, near) \
	OFFSET(off+far, R10); \
	VMOVDQU (DI)(R10*1), Y2; \
	ROT; \
	VMOVDQU off(DI)(R8*1), Y4; \
	VPXOR   Y2, near, near; \
	VPSUBD  near, Y4, near; \
	VMOVDQU near, off(DI)(R8*1)

// ADD and SUBTRACT do the same where the pass has not come to the nearer word, which
// is in memory.
#define ADD(off, far, ROT, near) \
	OFFSET(off+far, R10); \
	OFFSET(off+near, R11); \
	VMOVDQU (DI)(R10*1), Y2; \
	ROT; \
	VPXOR   (DI)(R11*1), Y2, Y2; \
	VPADDD  off(DI)(R8*1), Y2, Y2; \
	VMOVDQU Y2, off(DI)(R8*1)

#define SUBTRACT(off, far, ROT, near) \
	OFFSET(off+far, R10); \
	OFFSET(off+near, R11); \
	VMOVDQU (DI)(R10*1), Y2; \
	ROT; \
	VMOVDQU off(DI)(R8*1), Y4; \
	VPXOR   (DI)(R11*1), Y2, Y2; \
	VPSUBD  Y2, Y4, Y2; \
	VMOVDQU Y2, off(DI)(R8*1)

// TRANSPOSE makes rows Y0 to Y7 of eight words the columns of Y8 to Y15.
#define TRANSPOSE \
	VPUNPCKLDQ Y1, Y0, Y8; \
	VPUNPCKHDQ Y1, Y0, Y9; \
	VPUNPCKLDQ Y3, Y2, Y10; \
	VPUNPCKHDQ Y3, Y2, Y11; \
	VPUNPCKLDQ Y5, Y4, Y12; \
	VPUNPCKHDQ Y5, Y4, Y13; \
	VPUNPCKLDQ Y7, Y6, Y14; \
	VPUNPCKHDQ Y7, Y6, Y15; \
	VPUNPCKLQDQ Y10, Y8, Y0; \
	VPUNPCKHQDQ Y10, Y8, Y1; \
	VPUNPCKLQDQ Y11, Y9, Y2; \
	VPUNPCKHQDQ Y11, Y9, Y3; \
	VPUNPCKLQDQ Y14, Y12, Y4; \
	VPUNPCKHQDQ Y14, Y12, Y5; \
	VPUNPCKLQDQ Y15, Y13, Y6; \
	VPUNPCKHQDQ Y15, Y13, Y7; \
	VPERM2I128 $0x20, Y4, Y0, Y8; \
	VPERM2I128 $0x20, Y5, Y1, Y9; \
	VPERM2I128 $0x20, Y6, Y2, Y10; \
	VPERM2I128 $0x20, Y7, Y3, Y11; \
	VPERM2I128 $0x31, Y4, Y0, Y12; \
	VPERM2I128 $0x31, Y5, Y1, Y13; \
	VPERM2I128 $0x31, Y6, Y2, Y14; \
	VPERM2I128 $0x31, Y7, Y3, Y15

// In loadWordsAVX2 and storeWordsAVX2, SI is the first sector and AX its key. R8 to
// R12, BX and DX are how far behind it the others are. If there are fewer than eight,
// the rest of the lanes are the first sector again, which therefore is stored last.
#define LANE(n, offset) \
	CMPQ    CX, $n; \
	CMOVQLE R13, offset

#define LOAD_ARGS \
	MOVQ d+0(FP), DI; \
	MOVQ sectors+8(FP), SI; \
	MOVQ sectorSize+16(FP), R8; \
	MOVQ count+24(FP), CX; \
	MOVQ keys+32(FP), AX; \
	XORL R13, R13; \
	LEAQ (R8)(R8*1), R9; \
	LEAQ (R8)(R8*2), R10; \
	LEAQ (R8)(R8*4), R12; \
	LEAQ (R9)(R8*4), BX; \
	LEAQ (R10)(R8*4), DX; \
	MOVQ R8, R15; \
	LEAQ (R8*4), R11; \
	LANE(1, R8); \
	LANE(2, R9); \
	LANE(3, R10); \
	LANE(4, R11); \
	LANE(5, R12); \
	LANE(6, BX); \
	LANE(7, DX); \
	MOVQ R15, CX

// func diffuseAVX2(d *uint32, words int)
TEXT ·diffuseAVX2(SB), NOSPLIT, $0-16
	MOVQ d+0(FP), DI
	MOVQ words+8(FP), R9
	SHLQ $5, R9
	DECQ R9

	MOVQ $5, CX
passA:
	LEAQ -127(R9), R8
wordsA:
	SUBTRACT(96, -160, KEEP, -64)
	SUBTRACT(64, -160, ROTATE(13), -64)
	SUBTRACT(32, -160, KEEP, -64)
	SUBTRACT(0, -160, ROTATE(9), -64)
	SUBQ $128, R8
	JGE  wordsA
	DECQ CX
	JNZ  passA

	MOVQ $3, CX
passB:
	LEAQ -127(R9), R8
	VMOVDQU 0(DI), Y0
	VMOVDQU 32(DI), Y1
wordsB:
	SUBTRACT_NEAR(96, 160, ROTATE(25), Y1)
	SUBTRACT_NEAR(64, 160, KEEP, Y0)
	SUBTRACT_NEAR(32, 160, ROTATE(10), Y1)
	SUBTRACT_NEAR(0, 160, KEEP, Y0)
	SUBQ $128, R8
	JGE  wordsB
	DECQ CX
	JNZ  passB
	VZEROUPPER
	RET

// func undiffuseAVX2(d *uint32, words int)
TEXT ·undiffuseAVX2(SB), NOSPLIT, $0-16
	MOVQ d+0(FP), DI
	MOVQ words+8(FP), R9
	SHLQ $5, R9
	DECQ R9

	MOVQ $3, CX
passB:
	XORL R8, R8
wordsB:
	ADD(0, 160, KEEP, 64)
	ADD(32, 160, ROTATE(10), 64)
	ADD(64, 160, KEEP, 64)
	ADD(96, 160, ROTATE(25), 64)
	ADDQ $128, R8
	CMPQ R8, R9
	JB   wordsB
	DECQ CX
	JNZ  passB

	MOVQ $5, CX
passA:
	XORL R8, R8
	VMOVDQU -63(DI)(R9*1), Y0
	VMOVDQU -31(DI)(R9*1), Y1
wordsA:
	ADD_NEAR(0, -160, ROTATE(9), Y0)
	ADD_NEAR(32, -160, KEEP, Y1)
	ADD_NEAR(64, -160, ROTATE(13), Y0)
	ADD_NEAR(96, -160, KEEP, Y1)
	ADDQ $128, R8
	CMPQ R8, R9
	JB   wordsA
	DECQ CX
	JNZ  passA
	VZEROUPPER
	RET

// func loadWordsAVX2(d *uint32, sectors *byte, sectorSize, count int, keys *byte)
TEXT ·loadWordsAVX2(SB), NOSPLIT, $0-40
	LOAD_ARGS
load:
	VMOVDQU (SI), Y0
	VMOVDQU (SI)(R8*1), Y1
	VMOVDQU (SI)(R9*1), Y2
	VMOVDQU (SI)(R10*1), Y3
	VMOVDQU (SI)(R11*1), Y4
	VMOVDQU (SI)(R12*1), Y5
	VMOVDQU (SI)(BX*1), Y6
	VMOVDQU (SI)(DX*1), Y7
	VPXOR 0(AX), Y0, Y0
	VPXOR 32(AX), Y1, Y1
	VPXOR 64(AX), Y2, Y2
	VPXOR 96(AX), Y3, Y3
	VPXOR 128(AX), Y4, Y4
	VPXOR 160(AX), Y5, Y5
	VPXOR 192(AX), Y6, Y6
	VPXOR 224(AX), Y7, Y7
	TRANSPOSE
	VMOVDQU Y8, 0(DI)
	VMOVDQU Y9, 32(DI)
	VMOVDQU Y10, 64(DI)
	VMOVDQU Y11, 96(DI)
	VMOVDQU Y12, 128(DI)
	VMOVDQU Y13, 160(DI)
	VMOVDQU Y14, 192(DI)
	VMOVDQU Y15, 224(DI)
	ADDQ $32, SI
	ADDQ $256, DI
	SUBQ $32, CX
	JNZ  load
	VZEROUPPER
	RET

// func storeWordsAVX2(d *uint32, sectors *byte, sectorSize, count int, keys *byte)
TEXT ·storeWordsAVX2(SB), NOSPLIT, $0-40
	LOAD_ARGS
store:
	VMOVDQU 0(DI), Y0
	VMOVDQU 32(DI), Y1
	VMOVDQU 64(DI), Y2
	VMOVDQU 96(DI), Y3
	VMOVDQU 128(DI), Y4
	VMOVDQU 160(DI), Y5
	VMOVDQU 192(DI), Y6
	VMOVDQU 224(DI), Y7
	TRANSPOSE
	VPXOR 0(AX), Y8, Y8
	VPXOR 32(AX), Y9, Y9
	VPXOR 64(AX), Y10, Y10
	VPXOR 96(AX), Y11, Y11
	VPXOR 128(AX), Y12, Y12
	VPXOR 160(AX), Y13, Y13
	VPXOR 192(AX), Y14, Y14
	VPXOR 224(AX), Y15, Y15
	VMOVDQU Y15, (SI)(DX*1)
	VMOVDQU Y14, (SI)(BX*1)
	VMOVDQU Y13, (SI)(R12*1)
	VMOVDQU Y12, (SI)(R11*1)
	VMOVDQU Y11, (SI)(R10*1)
	VMOVDQU Y10, (SI)(R9*1)
	VMOVDQU Y9, (SI)(R8*1)
	VMOVDQU Y8, (SI)
	ADDQ $32, SI
	ADDQ $256, DI
	SUBQ $32, CX
	JNZ  store
	VZEROUPPER
	RET
