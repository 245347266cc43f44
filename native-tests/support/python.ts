/** libnbd's Python binding, for clients that no tool is: pipelines, illegal requests, models. */
import { must, run } from './process.ts';
import { type Skippable, skipOrFail } from './tools.ts';

/** Debian's own, for which python3-libnbd is made. */
export const PYTHON = '/usr/bin/python3';

/** True where the binding is there; otherwise the test is skipped, or failed where `CI=true`. */
export async function requirePython(t: Skippable): Promise<boolean> {
  const found = await run(PYTHON, ['-c', 'import nbd']).catch(() => undefined);
  if (found?.status === 0) return true;
  skipOrFail(t, 'missing libnbd for Python (Debian package python3-libnbd)');
  return false;
}

/** Runs a script, whose arguments follow, and returns the JSON that it prints. */
export async function runPython(script: string, ...args: readonly string[]): Promise<unknown> {
  return JSON.parse(await must(PYTHON, ['-c', script, ...args]));
}
