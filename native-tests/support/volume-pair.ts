/** Two volumes and a store in a temporary directory, for native tests of groups. */
import { join } from 'node:path';
import { mustCowbell, temporaryDirectory } from './process.ts';

export interface VolumePair {
  /** The path of a name in the test's directory; the store is `store`. */
  readonly at: (name: string) => string;
  readonly a: string;
  readonly b: string;
}

/** Creates volumes `a` and `b`. */
export async function makePair(t: { teardown(remove: () => void): void }, size: string): Promise<VolumePair> {
  const directory = temporaryDirectory(t);
  const at = (name: string): string => join(directory, name);
  for (const name of ['a', 'b']) await mustCowbell(['volume', 'create', at(name), '--size', size]);
  await mustCowbell(['store', 'init', at('store')]);
  return { at, a: at('a'), b: at('b') };
}

/** An export on the volume's own socket. */
export function uriOf(volume: string, name: string): string {
  return `nbd+unix:///${encodeURIComponent(name)}?socket=${volume}/nbd.sock`;
}
