/**
 * The program of a child process or thread, for tests that start one: as it was built, where it was, since
 * translating all of it takes seconds at each start; otherwise its source.
 */

import { existsSync } from 'node:fs';
import { execArgv } from 'node:process';
import { fileURLToPath } from 'node:url';

/** @param name of the program among those of the command line, such as `lane-worker`. */
export function builtProgram(name: string): string {
  const built = fileURLToPath(new URL(`../../dist/program/${name}.js`, import.meta.url));
  if (!existsSync(built)) return fileURLToPath(new URL(`../cli/${name}.ts`, import.meta.url));
  // Children inherit these, and would load the translator that they do not need.
  execArgv.length = 0;
  return built;
}
