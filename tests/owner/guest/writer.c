/*
 * An EFI application that writes a variable and an NV index of the TPM, again and again, and
 * says on the first serial port what is durable:
 *
 *     @VAR n, @NV n   what it found: a number, "none", or "torn" for anything else
 *     @V n, @N n      SetVariable, or the TPM, has confirmed number n
 *     @VFAIL, @NFAIL  it has refused that
 *
 * Built as a flat binary without libraries; tests/owner/guest/__init__.py adds the PE header.
 * Sources: UEFI 2.9, sections 4 (tables) and 8.2 (variables); TCG EFI Protocol 2.0;
 * TCG TPM Library, part 3.
 */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define EFIAPI __attribute__((ms_abi))
#define MEMBER(base, offset, type) (*(type *)((u8 *)(base) + (offset)))

typedef u64(EFIAPI *get_variable)(const u16 *, const void *, u32 *, u64 *, void *);
typedef u64(EFIAPI *set_variable)(const u16 *, const void *, u32, u64, const void *);
typedef u64(EFIAPI *locate_protocol)(const void *, void *, void **);
typedef u64(EFIAPI *set_watchdog)(u64, u64, u64, void *);
typedef u64(EFIAPI *submit_command)(void *, u32, const void *, u32, void *);

enum { INDEX = 0x1500017, OWNER = 0x40000001, NV_SIZE = 64, VARIABLE_SIZE = 100 };

static const u8 GUID[16] = {0x15, 0x42, 0x6c, 0x6f, 0x62, 0x73, 0x74, 0x4f,
                            0x8e, 0x77, 0x6e, 0x65, 0x72, 0x54, 0x50, 0x4d};
static const u8 TCG2[16] = {0x6c, 0x76, 0x7f, 0x60, 0x55, 0x74, 0xbe, 0x42,
                            0x93, 0x0b, 0xe4, 0xd7, 0x6d, 0xb2, 0x72, 0x0f};
static const u16 NAME[] = {'N', 'u', 'm', 'b', 'e', 'r', 0};

static void *tcg2;
static u8 command[512], response[512], content[512];
static u32 used;

static void send(char character) {
    u8 status;
    do
        __asm__ volatile("inb %w1, %b0" : "=a"(status) : "Nd"((u16)0x3fd));
    while (!(status & 0x20));
    __asm__ volatile("outb %b0, %w1" : : "a"(character), "Nd"((u16)0x3f8));
}

static void text(const char *words) {
    while (*words)
        send(*words++);
}

static void number(u64 value) {
    char digits[24];
    int count = 0;
    do
        digits[count++] = '0' + value % 10;
    while (value /= 10);
    while (count)
        send(digits[--count]);
}

static void say(const char *what, u64 value) {
    text(what);
    number(value);
    text("\r\n");
}

/* What is stored for a number: it says whether it is whole. */
static void fill(u8 *to, u32 size, u64 value) {
    for (u32 at = 0; at < size; at++)
        to[at] = at < 8 ? value >> 8 * at : value * 31 + at * 7;
}

static u64 value_of(const u8 *from) {
    u64 value = 0;
    for (int at = 7; at >= 0; at--)
        value = value << 8 | from[at];
    return value;
}

static int is_whole(const u8 *from, u32 size) {
    fill(content, size, value_of(from));
    for (u32 at = 0; at < size; at++)
        if (content[at] != from[at])
            return 0;
    return 1;
}

static u64 found(const char *what, const u8 *data, u32 size, u32 wanted) {
    text(what);
    if (size == wanted && is_whole(data, size)) {
        number(value_of(data));
        text("\r\n");
        return value_of(data);
    }
    text(size ? "torn\r\n" : "none\r\n");
    return 0;
}

static void put(u64 value, int bytes) {
    while (bytes--)
        command[used++] = value >> 8 * bytes;
}

static void begin(u32 code, u32 first, u32 second) {
    used = 0;
    put(0x8002, 2), put(0, 4), put(code, 4);
    put(first, 4);
    if (second)
        put(second, 4);
    put(9, 4), put(0x40000009, 4), put(0, 2), put(0, 1), put(0, 2);
}

/* Return the response code, or one of our own if the firmware could not ask. */
static u32 execute(void) {
    u32 size = used;
    used = 2;
    put(size, 4);
    for (u32 at = 0; at < 10; at++)
        response[at] = 0;
    if (MEMBER(tcg2, 24, submit_command)(tcg2, size, command, sizeof response, response))
        return 0xffffffff;
    return response[6] << 24 | response[7] << 16 | response[8] << 8 | response[9];
}

static u32 nv_define(void) {
    begin(0x12a, OWNER, 0);
    put(0, 2), put(14, 2), put(INDEX, 4), put(0xb, 2);
    put(1 << 1 | 1 << 17 | 1 << 25, 4), put(0, 2), put(NV_SIZE, 2);
    return execute();
}

static u32 nv_write(u64 value) {
    begin(0x137, OWNER, INDEX);
    put(NV_SIZE, 2);
    fill(command + used, NV_SIZE, value);
    used += NV_SIZE;
    put(0, 2);
    return execute();
}

static u32 nv_read(void) {
    begin(0x14e, OWNER, INDEX);
    put(NV_SIZE, 2), put(0, 2);
    return execute();
}

EFIAPI u64 start(void *image, void *system) __attribute__((section(".text.start")));

EFIAPI u64 start(void *image, void *system) {
    void *boot = MEMBER(system, 96, void *), *runtime = MEMBER(system, 88, void *);
    u64 size = sizeof content, variable, index, failed;
    u32 attributes, code;
    (void)image;
    MEMBER(boot, 256, set_watchdog)(0, 0, 0, 0);
    if (MEMBER(boot, 320, locate_protocol)(TCG2, 0, &tcg2)) {
        text("@NOTPM\r\n");
        return 1;
    }
    if (MEMBER(runtime, 72, get_variable)(NAME, GUID, &attributes, &size, response))
        size = 0;
    variable = found("@VAR ", response, size, VARIABLE_SIZE);
    code = nv_read();
    if (code)
        say("@NVCODE ", code);
    index = found("@NV ", response + 16, code ? 0 : NV_SIZE, NV_SIZE);
    if (code && (code = nv_define()))
        say("@DEFINE ", code);
    for (;;) {
        fill(content, VARIABLE_SIZE, ++variable);
        failed = MEMBER(runtime, 88, set_variable)(NAME, GUID, 7, VARIABLE_SIZE, content);
        say(failed ? "@VFAIL " : "@V ", failed ? failed & 0xff : variable);
        code = nv_write(++index);
        say(code ? "@NFAIL " : "@N ", code ? code : index);
    }
}
