/* ptrace(2) for user-mode Linux on processors with more register state than its kernels know of.
 *
 * UML keeps 2696 bytes of a process's extended state, as much as there was up to AVX-512 and protection keys. A host
 * whose processor has more (AMX: 11008 bytes) hands out that much, but takes back only the whole (EFAULT). So give it
 * the whole: what UML kept, and initial state for the rest, which no process in a UML guest can have used (it asks the
 * host's kernel for permission first, and UML does not pass that on).
 *
 * Loaded into UML's process alone (LD_PRELOAD). Built, with any gcc for x86-64, by
 *
 *   gcc -O2 -fPIC -ffreestanding -fno-stack-protector -fno-asynchronous-unwind-tables -fcf-protection=none -shared \
 *       -nostdlib -Wl,--build-id=none,-z,norelro,-z,noseparate-code,--hash-style=sysv -s fpregs.c -o fpregs.so
 */

enum { PTRACE = 101, PEEKTEXT = 1, PEEKUSER = 3, GETREGSET = 0x4204, SETREGSET = 0x4205, XSTATE = 0x202 };

struct piece { void *base; unsigned long length; };

long syscall(long number, ...);

static unsigned char whole[1 << 16];
static unsigned long size;

long ptrace(long request, long pid, void *address, void *data)
{
	struct piece *kept = data, all = { whole, sizeof whole };
	long word;

	if (request >= PEEKTEXT && request <= PEEKUSER)
		return syscall(PTRACE, request, pid, address, &word) < 0 ? -1 : word;
	if (request == SETREGSET && address == (void *)XSTATE) {
		if (!size) {
			if (syscall(PTRACE, GETREGSET, pid, XSTATE, &all) < 0)
				return -1;
			size = all.length;
			__builtin_memset(whole, 0, sizeof whole);
		}
		if (kept->length < size && size < sizeof whole) {
			__builtin_memcpy(whole, kept->base, kept->length);
			all.length = size;
			data = &all;
		}
	}
	return syscall(PTRACE, request, pid, address, data);
}
