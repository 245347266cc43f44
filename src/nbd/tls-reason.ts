/** Why TLS failed, in words: OpenSSL's messages hold addresses of memory and names of its source files. */

import { messageOf, systemCode } from '../base/index.ts';

/** Whether TLS itself failed, and not the connection beneath it. */
export function isTlsError(error: unknown): boolean {
  return systemCode(error)?.startsWith('ERR_SSL_') === true;
}

export function reasonOf(error: unknown): string {
  const reason: unknown = error instanceof Error ? Reflect.get(error, 'reason') : undefined;
  return typeof reason === 'string' && reason !== '' ? reason : messageOf(error);
}
