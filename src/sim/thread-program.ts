/**
 * The program of a thread, for tests that start one: as it was built, where it was, since translating all of it
 * takes a thread seconds; otherwise its source.
 */

import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

/** @param name of the program among those of the command line, such as `lane-worker`. */
export function threadProgram(name: string): string {
  const built = fileURLToPath(new URL(`../../dist/cli/${name}.js`, import.meta.url));
  return existsSync(built) ? built : fileURLToPath(new URL(`../cli/${name}.ts`, import.meta.url));
}
