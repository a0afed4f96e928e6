/* AES-XTS over sectors as a program in C would do it: one context, and for each
   sector its IV and one update. */

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdint.h>
#include <stddef.h>

/* Return the number of OpenSSL's version. */
const char *openssl_version(void)
{
    return OpenSSL_version(OPENSSL_VERSION_STRING);
}

/* Make a context for a key of 64 bytes; NULL if that fails. */
EVP_CIPHER_CTX *new_context(const unsigned char *key, int encrypt)
{
    EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
    if (context && EVP_CipherInit_ex(context, EVP_aes_256_xts(), NULL, key, NULL, encrypt) != 1) {
        EVP_CIPHER_CTX_free(context);
        return NULL;
    }
    return context;
}

void free_context(EVP_CIPHER_CTX *context)
{
    EVP_CIPHER_CTX_free(context);
}

/* Encrypt or decrypt `count` sectors numbered `number`, `number + step`, ...; 0 if
   that succeeds. */
int crypt_sectors(EVP_CIPHER_CTX *context, uint64_t number, uint64_t step, size_t sector_size,
                  size_t count, const unsigned char *data, unsigned char *out)
{
    unsigned char iv[16] = {0};
    int written;
    for (; count; count--, number += step, data += sector_size, out += sector_size) {
        for (int byte = 0; byte < 8; byte++)
            iv[byte] = (unsigned char)(number >> 8 * byte);
        if (EVP_CipherInit_ex(context, NULL, NULL, NULL, iv, -1) != 1
            || EVP_CipherUpdate(context, out, &written, data, (int)sector_size) != 1)
            return -1;
    }
    return 0;
}
