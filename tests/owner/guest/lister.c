/*
 * An EFI application that says on the first serial port which variables firmware has:
 *
 *     @LIST guid name attributes data     in hexadecimal; the name as the bytes of UCS-2
 *     @END count
 *
 * Built as writer.c is. Source: UEFI 2.9, section 8.2 (variables).
 */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define EFIAPI __attribute__((ms_abi))
#define MEMBER(base, offset, type) (*(type *)((u8 *)(base) + (offset)))

typedef u64(EFIAPI *get_variable)(const u16 *, const void *, u32 *, u64 *, void *);
typedef u64(EFIAPI *get_next_name)(u64 *, u16 *, void *);
typedef u64(EFIAPI *set_watchdog)(u64, u64, u64, void *);

static u16 name[1024];
static u8 guid[16], data[1 << 16];

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

static void bytes(const void *from, u64 size) {
    send(' ');
    for (u64 at = 0; at < size; at++) {
        u8 value = ((const u8 *)from)[at];
        send("0123456789abcdef"[value >> 4]);
        send("0123456789abcdef"[value & 15]);
    }
}

__attribute__((section(".text.start"))) u64 EFIAPI start(void *image, void *system) {
    void *runtime = MEMBER(system, 88, void *);
    u32 count = 0;
    (void)image;
    MEMBER(MEMBER(system, 96, void *), 256, set_watchdog)(0, 0, 0, 0);
    for (;;) {
        u64 name_size = sizeof name, size = sizeof data;
        u32 attributes = 0;
        if (MEMBER(runtime, 80, get_next_name)(&name_size, name, guid))
            break;
        if (MEMBER(runtime, 72, get_variable)(name, guid, &attributes, &size, data))
            size = 0;
        text("@LIST");
        bytes(guid, sizeof guid);
        bytes(name, name_size - 2);
        bytes(&attributes, sizeof attributes);
        bytes(data, size);
        text("\r\n");
        count++;
    }
    text("@END");
    bytes(&count, sizeof count);
    text("\r\n");
    for (;;)
        __asm__ volatile("hlt");
}
