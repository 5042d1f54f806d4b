//go:build !purego

#include "textflag.h"

// The stretch with SHA instructions, for one key or for two in turns. See
// laneWords in stretch.go for the words.
//
// In both functions: AX constants, BX start, CX count, DX end, SI and DI words of
// the lanes; X0 what the next four rounds add, X13 count, X14 scratch, X15 zero. A
// lane has its state in S0 (A B E F, from the top) and S1 (C D G H), and four
// quarters of the message schedule, M0 to M3. Between rounds of the stretch, M0
// and M1 hold last. What is left of initial comes as a memory operand or as X0.

// ROUNDS does four rounds.
#define ROUNDS(S0, S1) \
	SHA256RNDS2 X0, S0, S1; \
	PSHUFD $0x0E, X0, X0; \
	SHA256RNDS2 X0, S1, S0

// KNOWN does four rounds with words t to t+3 of the lane, which hold K + W.
#define KNOWN(t, WORDS, S0, S1) \
	VMOVDQU (4*(t))(WORDS), X0; \
	ROUNDS(S0, S1)

// USE does rounds t to t+3 with the message words in M.
#define USE(t, M, S0, S1) \
	VPADDD (4*(t))(AX), M, X0; \
	ROUNDS(S0, S1)

// SCHEDULE replaces the oldest message words, M0, by the next.
#define SCHEDULE(M0, M1, M2, M3) \
	SHA256MSG1 M1, M0; \
	VPALIGNR $4, M2, M3, X14; \
	VPADDD X14, M0, M0; \
	SHA256MSG2 M3, M0

// STEP does both, for rounds t to t+3.
#define STEP(t, S0, S1, M0, M1, M2, M3) \
	SCHEDULE(M0, M1, M2, M3); \
	USE(t, M0, S0, S1)

// FIRSTn, SECONDn: the blocks in parts, to be done in turns for two lanes.
#define FIRST0(WORDS, S0, S1, M0, M1) \
	VMOVDQU (BX), S0; \
	VMOVDQU 16(BX), S1; \
	USE(0, M0, S0, S1)

#define FIRST4(S0, S1, M1) \
	USE(4, M1, S0, S1)

#define FIRST16(WORDS, S0, S1, M0, M1) \
	SHA256MSG1 M1, M0; \
	VPADDD 64(WORDS), M0, M0; \
	SHA256MSG2 X15, M0; \
	USE(16, M0, S0, S1)

#define FIRST20(WORDS, S0, S1, M0, M1) \
	SHA256MSG1 X15, M1; \
	VPADDD 80(WORDS), M1, M1; \
	VPALIGNR $4, X15, M0, X14; \
	VPADDD X14, M1, M1; \
	SHA256MSG2 M0, M1; \
	USE(20, M1, S0, S1)

#define FIRST24(WORDS, S0, S1, M0, M1, M2) \
	VPALIGNR $4, M0, M1, M2; \
	VPADDD 96(WORDS), M2, M2; \
	SHA256MSG2 M1, M2; \
	USE(24, M2, S0, S1)

#define FIRST28(WORDS, S0, S1, M0, M1, M2, M3) \
	VPXOR M3, M3, M3; \
	SHA256MSG1 M0, M3; \
	VPADDD 112(WORDS), M3, M3; \
	VPALIGNR $4, M1, M2, X14; \
	VPADDD X14, M3, M3; \
	SHA256MSG2 M2, M3; \
	USE(28, M3, S0, S1)

#define FIRSTEND(WORDS, S0, S1) \
	VPADDD (BX), S0, S0; \
	VPADDD 16(BX), S1, S1; \
	VMOVDQU S0, 256(WORDS); \
	VMOVDQU S1, 272(WORDS)

#define SECOND4(WORDS, S0, S1) \
	VPADDD 144(WORDS), X13, X0; \
	ROUNDS(S0, S1)

#define SECOND16(WORDS, S0, S1, M0) \
	VPXOR M0, M0, M0; \
	SHA256MSG1 X13, M0; \
	VPADDD 192(WORDS), M0, M0; \
	USE(16, M0, S0, S1)

#define SECOND20(WORDS, S0, S1, M0, M1) \
	VPADDD 208(WORDS), X13, M1; \
	SHA256MSG2 M0, M1; \
	USE(20, M1, S0, S1)

#define SECOND24(WORDS, S0, S1, M0, M1, M2) \
	VPALIGNR $4, M0, M1, M2; \
	SHA256MSG2 M1, M2; \
	USE(24, M2, S0, S1)

#define SECOND28(WORDS, S0, S1, M1, M2, M3) \
	VPALIGNR $4, M1, M2, M3; \
	VPADDD 240(WORDS), M3, M3; \
	SHA256MSG2 M2, M3; \
	USE(28, M3, S0, S1)

// SECONDEND makes the hash the next last.
#define SECONDEND(WORDS, S0, S1, M0, M1) \
	VPADDD 256(WORDS), S0, S0; \
	VPADDD 272(WORDS), S1, S1; \
	VSHUFPS $0xBB, S1, S0, M0; \
	VSHUFPS $0x11, S1, S0, M1

#define LOAD_ARGS \
	VZEROUPPER; \
	MOVQ words+0(FP), SI; \
	MOVQ first+8(FP), CX; \
	MOVQ n+16(FP), DX; \
	ADDQ CX, DX; \
	LEAQ ·sha256K(SB), AX; \
	LEAQ ·sha256Start(SB), BX; \
	VPXOR X15, X15, X15

#define LOAD_COUNT \
	MOVL CX, R8; \
	BSWAPL R8; \
	VMOVD R8, X13

// Lane 1: X1 X2, X3 X4 X5 X6. Lane 2: X7 X8, X9 X10 X11 X12.

// func stretchSHA1(words *uint32, first, n int)
TEXT ·stretchSHA1(SB), NOSPLIT, $0-24
	LOAD_ARGS
	VMOVDQU (SI), X3
	VMOVDQU 16(SI), X4

round:
	LOAD_COUNT
	FIRST0(SI, X1, X2, X3, X4)
	FIRST4(X1, X2, X4)
	KNOWN(8, SI, X1, X2)
	KNOWN(12, SI, X1, X2)
	FIRST16(SI, X1, X2, X3, X4)
	FIRST20(SI, X1, X2, X3, X4)
	FIRST24(SI, X1, X2, X3, X4, X5)
	FIRST28(SI, X1, X2, X3, X4, X5, X6)
	STEP(32, X1, X2, X3, X4, X5, X6)
	STEP(36, X1, X2, X4, X5, X6, X3)
	STEP(40, X1, X2, X5, X6, X3, X4)
	STEP(44, X1, X2, X6, X3, X4, X5)
	STEP(48, X1, X2, X3, X4, X5, X6)
	STEP(52, X1, X2, X4, X5, X6, X3)
	STEP(56, X1, X2, X5, X6, X3, X4)
	STEP(60, X1, X2, X6, X3, X4, X5)
	FIRSTEND(SI, X1, X2)

	KNOWN(32, SI, X1, X2)
	SECOND4(SI, X1, X2)
	KNOWN(40, SI, X1, X2)
	KNOWN(44, SI, X1, X2)
	SECOND16(SI, X1, X2, X3)
	SECOND20(SI, X1, X2, X3, X4)
	SECOND24(SI, X1, X2, X3, X4, X5)
	SECOND28(SI, X1, X2, X4, X5, X6)
	STEP(32, X1, X2, X3, X4, X5, X6)
	STEP(36, X1, X2, X4, X5, X6, X3)
	STEP(40, X1, X2, X5, X6, X3, X4)
	STEP(44, X1, X2, X6, X3, X4, X5)
	STEP(48, X1, X2, X3, X4, X5, X6)
	STEP(52, X1, X2, X4, X5, X6, X3)
	STEP(56, X1, X2, X5, X6, X3, X4)
	STEP(60, X1, X2, X6, X3, X4, X5)
	SECONDEND(SI, X1, X2, X3, X4)

	INCQ CX
	CMPQ CX, DX
	JB   round

	VMOVDQU X3, (SI)
	VMOVDQU X4, 16(SI)
	VZEROALL
	RET

// Both lanes do the same, in turns.
#define STEP2(t, M0, M1, M2, M3, N0, N1, N2, N3) \
	STEP(t, X1, X2, M0, M1, M2, M3); \
	STEP(t, X7, X8, N0, N1, N2, N3)

#define KNOWN2(t) \
	KNOWN(t, SI, X1, X2); \
	KNOWN(t, DI, X7, X8)

// func stretchSHA2(words *uint32, first, n int)
TEXT ·stretchSHA2(SB), NOSPLIT, $0-24
	LOAD_ARGS
	LEAQ 288(SI), DI
	VMOVDQU (SI), X3
	VMOVDQU 16(SI), X4
	VMOVDQU (DI), X9
	VMOVDQU 16(DI), X10

round:
	LOAD_COUNT
	FIRST0(SI, X1, X2, X3, X4)
	FIRST0(DI, X7, X8, X9, X10)
	FIRST4(X1, X2, X4)
	FIRST4(X7, X8, X10)
	KNOWN2(8)
	KNOWN2(12)
	FIRST16(SI, X1, X2, X3, X4)
	FIRST16(DI, X7, X8, X9, X10)
	FIRST20(SI, X1, X2, X3, X4)
	FIRST20(DI, X7, X8, X9, X10)
	FIRST24(SI, X1, X2, X3, X4, X5)
	FIRST24(DI, X7, X8, X9, X10, X11)
	FIRST28(SI, X1, X2, X3, X4, X5, X6)
	FIRST28(DI, X7, X8, X9, X10, X11, X12)
	STEP2(32, X3, X4, X5, X6, X9, X10, X11, X12)
	STEP2(36, X4, X5, X6, X3, X10, X11, X12, X9)
	STEP2(40, X5, X6, X3, X4, X11, X12, X9, X10)
	STEP2(44, X6, X3, X4, X5, X12, X9, X10, X11)
	STEP2(48, X3, X4, X5, X6, X9, X10, X11, X12)
	STEP2(52, X4, X5, X6, X3, X10, X11, X12, X9)
	STEP2(56, X5, X6, X3, X4, X11, X12, X9, X10)
	STEP2(60, X6, X3, X4, X5, X12, X9, X10, X11)
	FIRSTEND(SI, X1, X2)
	FIRSTEND(DI, X7, X8)

	KNOWN2(32)
	SECOND4(SI, X1, X2)
	SECOND4(DI, X7, X8)
	KNOWN2(40)
	KNOWN2(44)
	SECOND16(SI, X1, X2, X3)
	SECOND16(DI, X7, X8, X9)
	SECOND20(SI, X1, X2, X3, X4)
	SECOND20(DI, X7, X8, X9, X10)
	SECOND24(SI, X1, X2, X3, X4, X5)
	SECOND24(DI, X7, X8, X9, X10, X11)
	SECOND28(SI, X1, X2, X4, X5, X6)
	SECOND28(DI, X7, X8, X10, X11, X12)
	STEP2(32, X3, X4, X5, X6, X9, X10, X11, X12)
	STEP2(36, X4, X5, X6, X3, X10, X11, X12, X9)
	STEP2(40, X5, X6, X3, X4, X11, X12, X9, X10)
	STEP2(44, X6, X3, X4, X5, X12, X9, X10, X11)
	STEP2(48, X3, X4, X5, X6, X9, X10, X11, X12)
	STEP2(52, X4, X5, X6, X3, X10, X11, X12, X9)
	STEP2(56, X5, X6, X3, X4, X11, X12, X9, X10)
	STEP2(60, X6, X3, X4, X5, X12, X9, X10, X11)
	SECONDEND(SI, X1, X2, X3, X4)
	SECONDEND(DI, X7, X8, X9, X10)

	INCQ CX
	CMPQ CX, DX
	JB   round

	VMOVDQU X3, (SI)
	VMOVDQU X4, 16(SI)
	VMOVDQU X9, (DI)
	VMOVDQU X10, 16(DI)
	VZEROALL
	RET

// func hasSHAInstructions() bool
TEXT ·hasSHAInstructions(SB), NOSPLIT, $0-1
	MOVL $0, AX
	XORL CX, CX
	CPUID
	CMPL AX, $7
	JB   no
	MOVL $7, AX
	XORL CX, CX
	CPUID
	SHRL $29, BX
	ANDL $1, BX
	MOVB BX, ret+0(FP)
	RET

no:
	MOVB $0, ret+0(FP)
	RET
