/** Where the program of a session's child process lies: beside this file, compiled or not as this file is. */

import { extname } from 'node:path';
import { fileURLToPath } from 'node:url';

export function workerPath(): string {
  return fileURLToPath(new URL(`./session-worker${extname(import.meta.url)}`, import.meta.url));
}
