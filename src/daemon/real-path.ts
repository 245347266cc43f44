/** Paths without links: two of them are of one place or not. */

import { realpath } from 'node:fs/promises';

/** The path without links; itself where there is nothing. */
export async function realPathOf(path: string): Promise<string> {
  try {
    return await realpath(path);
  } catch {
    return path;
  }
}
