/**
 * A volume in a temporary directory, served by `cowbell serve`, for native tests that use one.
 *
 * The server is stopped at the end of the test, before its directory goes.
 */
import { join } from 'node:path';
import { cowbell, mustCowbell, type Running, startCowbell, temporaryDirectory } from './process.ts';

export interface ServeOptions {
  /** As `volume create --size` takes it. */
  readonly size: string;
  /** Further words for `volume create`. */
  readonly create?: readonly string[];
  /** Further words for `serve`. */
  readonly serve?: readonly string[];
}

export interface Served {
  /** The path of a name in the test's directory. */
  readonly at: (name: string) => string;
  /** The volume's directory. */
  readonly volume: string;
  readonly server: Running;
  /** The export on the volume's own socket, or on the first address of `serve`. */
  readonly uri: string;
}

/** Starts `cowbell serve` and waits until it accepts clients; returns it with the first URI it announced. */
export async function startServer(
  t: { teardown(stop: () => Promise<void>): void },
  words: readonly string[],
): Promise<{ readonly server: Running; readonly uri: string }> {
  const server = startCowbell(['serve', ...words]);
  t.teardown(async () => {
    if (server.ended === undefined) await server.stop('SIGKILL');
  });
  const uri = (await server.waitForLine(/^ready /)).slice('ready '.length);
  return { server, uri };
}

/** Creates a volume named `vol`, whose home is `home.raw` beside it, and serves it. */
export async function serveVolume(
  t: { teardown(stop: () => void | Promise<void>): void },
  options: ServeOptions,
): Promise<Served> {
  const directory = temporaryDirectory(t);
  const at = (name: string): string => join(directory, name);
  const volume = at('vol');
  const { size, create = [], serve = [] } = options;
  await mustCowbell(['volume', 'create', volume, '--size', size, '--home', at('home.raw'), ...create]);
  const { server, uri } = await startServer(t, [volume, ...serve]);
  return { at, volume, server, uri };
}

/** The lines of a command run with `--json`. */
export function eventsOf(stdout: string): readonly Readonly<Record<string, unknown>>[] {
  return stdout
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => {
      const value: unknown = JSON.parse(line);
      return typeof value === 'object' && value !== null ? { ...value } : {};
    });
}

/** Backs the volume up and returns the `set` event. */
export async function backUp(
  volume: string,
  store: string,
  words: readonly string[] = [],
): Promise<Readonly<Record<string, unknown>>> {
  const stdout = await mustCowbell(['--json', 'backup', '--store', store, volume, ...words]);
  const set = eventsOf(stdout).find((event) => event['event'] === 'set');
  if (set === undefined) throw new Error(`Backup of ${volume} reported no set: ${stdout}`);
  return set;
}

/** The ids of a store's visible sets. */
export async function visibleSets(store: string): Promise<readonly string[]> {
  const stdout = await mustCowbell(['--json', 'store', 'list', store]);
  return eventsOf(stdout).flatMap((event) => (event['event'] === 'set' ? [String(event['set'])] : []));
}

/** The state of a volume as `status` tells it. */
export async function statusOf(volume: string): Promise<Readonly<Record<string, unknown>>> {
  const { stdout, stderr } = await cowbell(['--json', 'status', volume]);
  const status = eventsOf(stdout).find((event) => event['event'] === 'status');
  if (status === undefined) throw new Error(`No status of ${volume}: ${stdout}${stderr}`);
  return status;
}
