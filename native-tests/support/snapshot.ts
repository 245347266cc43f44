/** Snapshots by command, and their exports on the volume's own socket, for native tests. */
import { must, mustCowbell } from './process.ts';
import { eventsOf } from './served.ts';

/** The export of a volume named `vol`, or of a snapshot of it. */
export function uriOf(volume: string, name?: string): string {
  const exportName = name === undefined ? 'vol' : `vol%40${name}`;
  return `nbd+unix:///${exportName}?socket=${volume}/nbd.sock`;
}

/** Writes patterns as qemu-io takes them, and flushes. */
export async function write(uri: string, ...commands: readonly string[]): Promise<void> {
  const words = commands.flatMap((command) => ['-c', `write ${command}`]);
  await must('qemu-io', ['-f', 'raw', ...words, '-c', 'flush', uri]);
}

/** Fails unless the export holds these patterns. */
export async function expectContent(uri: string, ...commands: readonly string[]): Promise<void> {
  const words = commands.flatMap((command) => ['-c', `read ${command}`]);
  await must('qemu-io', ['-f', 'raw', '-r', ...words, uri]);
}

/** A snapshot command with `--json`, which must succeed; the events but the last, which is `done`. */
export async function snapshot(
  ...words: readonly string[]
): Promise<readonly Readonly<Record<string, unknown>>[]> {
  return eventsOf(await mustCowbell(['--json', 'snapshot', ...words])).slice(0, -1);
}

/** The names of the exports, in order of the alphabet. */
export async function exported(volume: string): Promise<readonly string[]> {
  const listed: unknown = JSON.parse(
    await must('nbdinfo', ['--json', '--list', `nbd+unix:///?socket=${volume}/nbd.sock`]),
  );
  const exports: unknown = typeof listed === 'object' && listed !== null && Reflect.get(listed, 'exports');
  if (!Array.isArray(exports)) throw new Error('nbdinfo lists no exports');
  return exports.map((one: { readonly 'export-name': string }) => one['export-name']).sort();
}
