/**
 * Files of pre-shared keys, as GnuTLS's `psktool` writes them: one `user:hexkey` a line.
 *
 * A user that begins with `#` is the user's name in hexadecimal, which is how names with a colon are written.
 * Empty lines are skipped; anything else that is no such line makes the file unusable, so that a typing error
 * does not silently lock somebody out.
 */

import { LIMITS } from '../base/index.ts';
import { decodeString } from './codec.ts';
import { NbdTlsError } from './tls-error.ts';

/** Keys by the name of their user. */
export type PskKeys = ReadonlyMap<string, Buffer>;

/**
 * @param path for messages.
 * @throws {NbdTlsError} tls-file-invalid; the message names the line and never a key.
 */
export function parsePskFile(text: string, path: string): PskKeys {
  const keys = new Map<string, Buffer>();
  for (const [index, whole] of text.split('\n').entries()) {
    const line = whole.endsWith('\r') ? whole.slice(0, -1) : whole;
    if (line === '') continue;
    const refuse = (wanted: string): NbdTlsError =>
      new NbdTlsError(
        'tls-file-invalid',
        `Line ${index + 1} of the key file ${path} cannot be used: ${wanted}`,
        {
          path,
        },
      );
    const colon = line.indexOf(':');
    const username = colon < 1 ? undefined : usernameOf(line.slice(0, colon));
    if (username === undefined) throw refuse('wanted user:hexkey');
    const key = bytesOfHex(line.slice(colon + 1));
    if (key === undefined || key.length > LIMITS.tlsKeyBytesMax) {
      throw refuse(`wanted a key of 1 to ${LIMITS.tlsKeyBytesMax} bytes in hexadecimal`);
    }
    if (keys.has(username)) throw refuse(`the user ${username} has a key already`);
    keys.set(username, key);
  }
  if (keys.size === 0) {
    const message = `The key file ${path} holds no key, wanted lines user:hexkey`;
    throw new NbdTlsError('tls-file-invalid', message, { path });
  }
  return keys;
}

function usernameOf(text: string): string | undefined {
  const bytes = text.startsWith('#') ? bytesOfHex(text.slice(1)) : Buffer.from(text);
  if (bytes === undefined || bytes.length > LIMITS.tlsUsernameBytesMax) return undefined;
  return decodeString(bytes);
}

function bytesOfHex(text: string): Buffer | undefined {
  return /^(?:[0-9a-fA-F]{2})+$/.test(text) ? Buffer.from(text, 'hex') : undefined;
}
