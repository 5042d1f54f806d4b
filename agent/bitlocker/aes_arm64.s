//go:build !purego

#include "textflag.h"

// Instructions take round keys from registers only: V16 has each for as long as eight
// blocks need it. In both functions: R0 round keys, R1 rounds-1, R2 blocks, R3 pre,
// R4 post, R5 blocks left, R8 the next round key, R9 rounds left, V0 to V7 blocks,
// V8 to V15 masks.

#define LOAD_ARGS \
	MOVD keys+0(FP), R0; \
	MOVD rounds+8(FP), R1; \
	MOVD b+16(FP), R2; \
	MOVD pre+24(FP), R3; \
	MOVD post+32(FP), R4; \
	MOVD blocks+40(FP), R5; \
	SUB  $1, R1

// MASK8 XORs the blocks with masks.
#define MASK8(from) \
	VLD1.P 64(from), [V8.B16, V9.B16, V10.B16, V11.B16]; \
	VLD1.P 64(from), [V12.B16, V13.B16, V14.B16, V15.B16]; \
	VEOR   V8.B16, V0.B16, V0.B16; \
	VEOR   V9.B16, V1.B16, V1.B16; \
	VEOR   V10.B16, V2.B16, V2.B16; \
	VEOR   V11.B16, V3.B16, V3.B16; \
	VEOR   V12.B16, V4.B16, V4.B16; \
	VEOR   V13.B16, V5.B16, V5.B16; \
	VEOR   V14.B16, V6.B16, V6.B16; \
	VEOR   V15.B16, V7.B16, V7.B16

// MIXED_ROUND8 is a round with the key in V16, of two instructions that processors run
// as one. The last round, ROUND8, does not mix columns; another key, KEY8, follows it.
#define MIXED_ROUND8(OP, MIX) \
	OP  V16.B16, V0.B16; \
	MIX V0.B16, V0.B16; \
	OP  V16.B16, V1.B16; \
	MIX V1.B16, V1.B16; \
	OP  V16.B16, V2.B16; \
	MIX V2.B16, V2.B16; \
	OP  V16.B16, V3.B16; \
	MIX V3.B16, V3.B16; \
	OP  V16.B16, V4.B16; \
	MIX V4.B16, V4.B16; \
	OP  V16.B16, V5.B16; \
	MIX V5.B16, V5.B16; \
	OP  V16.B16, V6.B16; \
	MIX V6.B16, V6.B16; \
	OP  V16.B16, V7.B16; \
	MIX V7.B16, V7.B16

#define ROUND8(OP) \
	OP V16.B16, V0.B16; \
	OP V16.B16, V1.B16; \
	OP V16.B16, V2.B16; \
	OP V16.B16, V3.B16; \
	OP V16.B16, V4.B16; \
	OP V16.B16, V5.B16; \
	OP V16.B16, V6.B16; \
	OP V16.B16, V7.B16

#define KEY8 \
	VEOR V16.B16, V0.B16, V0.B16; \
	VEOR V16.B16, V1.B16, V1.B16; \
	VEOR V16.B16, V2.B16, V2.B16; \
	VEOR V16.B16, V3.B16, V3.B16; \
	VEOR V16.B16, V4.B16, V4.B16; \
	VEOR V16.B16, V5.B16, V5.B16; \
	VEOR V16.B16, V6.B16, V6.B16; \
	VEOR V16.B16, V7.B16, V7.B16

// CRYPT is the body of both functions.
#define CRYPT(OP, MIX) \
	LOAD_ARGS; \
eight: \
	CMP $8, R5; \
	BLT one; \
	VLD1.P 64(R2), [V0.B16, V1.B16, V2.B16, V3.B16]; \
	VLD1   (R2), [V4.B16, V5.B16, V6.B16, V7.B16]; \
	SUB    $64, R2; \
	MASK8(R3); \
	MOVD R0, R8; \
	MOVD R1, R9; \
	CBZ  R9, eightlast; \
eightround: \
	VLD1.P 16(R8), [V16.B16]; \
	MIXED_ROUND8(OP, MIX); \
	SUB  $1, R9; \
	CBNZ R9, eightround; \
eightlast: \
	VLD1.P 16(R8), [V16.B16]; \
	ROUND8(OP); \
	VLD1   (R8), [V16.B16]; \
	KEY8; \
	MASK8(R4); \
	VST1.P [V0.B16, V1.B16, V2.B16, V3.B16], 64(R2); \
	VST1.P [V4.B16, V5.B16, V6.B16, V7.B16], 64(R2); \
	SUB $8, R5; \
	B   eight; \
one: \
	CBZ R5, done; \
	VLD1   (R2), [V0.B16]; \
	VLD1.P 16(R3), [V8.B16]; \
	VEOR   V8.B16, V0.B16, V0.B16; \
	MOVD   R0, R8; \
	MOVD   R1, R9; \
	CBZ    R9, onelast; \
oneround: \
	VLD1.P 16(R8), [V16.B16]; \
	OP   V16.B16, V0.B16; \
	MIX  V0.B16, V0.B16; \
	SUB  $1, R9; \
	CBNZ R9, oneround; \
onelast: \
	VLD1.P 16(R8), [V16.B16]; \
	OP     V16.B16, V0.B16; \
	VLD1   (R8), [V16.B16]; \
	VEOR   V16.B16, V0.B16, V0.B16; \
	VLD1.P 16(R4), [V8.B16]; \
	VEOR   V8.B16, V0.B16, V0.B16; \
	VST1.P [V0.B16], 16(R2); \
	SUB    $1, R5; \
	B      one; \
done: \
	VEOR V16.B16, V16.B16, V16.B16; \
	RET

// func encryptBlocks(keys *byte, rounds int, b, pre, post *byte, blocks int)
TEXT ·encryptBlocks(SB), NOSPLIT, $0-48
	CRYPT(AESE, AESMC)

// func decryptBlocks(keys *byte, rounds int, b, pre, post *byte, blocks int)
TEXT ·decryptBlocks(SB), NOSPLIT, $0-48
	CRYPT(AESD, AESIMC)
