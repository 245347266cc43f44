/**
 * `serve --config`: volumes, sockets and policies of a file, which is read again at SIGHUP. A file with a mistake is
 * refused as a whole, with every mistake at its line, and what is served stays as it was.
 */

import { formatSize, messageOf, systemTimer } from '../base/index.ts';
import { errorCode, type PolicyEvent, type PolicyOutcome, Serving } from '../daemon/index.ts';
import type { CommandContext } from './command.ts';
import { type Config, ConfigError, readConfigFile } from './config/index.ts';
import { keyAt } from './key-options.ts';
import { aborted } from './listen-options.ts';
import type { Output } from './output.ts';
import { mainPath, mediumFeedPath, storeReaderPath, workerPath } from './worker-path.ts';

/** Serves until the signal fires. @param path of the config, absolute. */
export async function serveConfig(context: CommandContext, path: string): Promise<void> {
  const { output, signal, onHangup, clock, takeHandedSockets } = context;
  const config = await readTold(output, path);
  const starting = Serving.start({
    volumes: config.volumes.map(({ directory }) => directory),
    listeners: [...config.listeners, ...takeHandedSockets()],
    tls: config.tls,
    readOnly: false,
    clock,
    workerPath: workerPath(),
    readerPath: storeReaderPath(),
    feedPath: mediumFeedPath(),
    recovery: { onRecovered: recoveredTo(output) },
    policing: {
      volumes: config.volumes,
      program: mainPath(),
      timer: systemTimer,
      readKey: keyAt,
      tell: (event) => tellPolicy(output, event),
    },
    warn: (sentence) => output.warn(sentence),
  });
  // A signal that comes early waits: without anybody who listens it would end the process.
  let reloading: Promise<void> = starting.then(
    () => undefined,
    () => undefined,
  );
  const stopListening = onHangup(() => {
    reloading = reloading.then(() => reload(output, starting, path, config));
  });
  try {
    const serving = await starting;
    try {
      for (const uri of serving.uris) output.report({ event: 'ready', uri }, `ready ${uri}`);
      await aborted(signal);
    } finally {
      await serving.stop();
    }
  } finally {
    stopListening();
    await reloading;
  }
}

/** Tells that a volume, named, is not filled any more. */
export function recoveredTo(output: Output): (volume: string) => void {
  return (volume) => output.report({ event: 'recovered', volume }, `${volume} has all of its home again`);
}

/** Reads the config; of one with mistakes, all but what the error says are told first. */
async function readTold(output: Output, path: string): Promise<Config> {
  try {
    return await readConfigFile(path);
  } catch (error) {
    if (error instanceof ConfigError) for (const line of error.lines) output.warn(line);
    throw error;
  }
}

/** Never rejects. @param first the config that the listeners are of. */
async function reload(
  output: Output,
  starting: Promise<Serving>,
  path: string,
  first: Config,
): Promise<void> {
  try {
    const config = await readTold(output, path);
    if (listeningOf(config) !== listeningOf(first)) {
      output.warn(
        `Config ${path} has other listen, sockets or tls, which cannot change while serving; start the server anew for them`,
      );
    }
    const serving = await starting;
    const { uris, added, removed } = await serving.reload(config.volumes);
    output.report(
      { event: 'reloaded', config: path, added, removed },
      `reloaded ${path}: ${added.length} volumes came, ${removed.length} went`,
    );
    for (const uri of uris) output.report({ event: 'ready', uri }, `ready ${uri}`);
  } catch (error) {
    const problems = error instanceof ConfigError ? error.details.problems : [];
    const message = messageOf(error);
    output.report(
      { event: 'reload-refused', config: path, code: errorCode(error), message, problems },
      `reload refused, everything stays as it was: ${message}`,
    );
    output.warn(`Reload refused, everything stays as it was: ${message}`);
  }
}

function listeningOf({ listeners, tls }: Config): string {
  return JSON.stringify([listeners, tls ?? null]);
}

function tellPolicy(output: Output, event: PolicyEvent): void {
  const { volume } = event;
  if (event.kind === 'copies') {
    const { count, minimum, where } = event;
    const isBelow = count < minimum;
    const sentence = `What of ${volume} is not backed up yet is there ${count === 1 ? 'once' : `${count} times`} (${where.join(', ')}), wanted ${minimum} copies`;
    const line = isBelow ? sentence : `${sentence}: that is enough again`;
    output.report({ event: 'copies', volume, count, where, minimum, isBelow }, line);
    if (isBelow) output.warn(sentence);
    return;
  }
  const { policy } = event;
  const who = `policy ${policy} of ${volume}`;
  if (event.kind === 'begun') {
    const { cause, dueMs } = event;
    output.report(
      { event: 'policy', volume, policy, state: 'running', cause, dueMs },
      `${who} begins: ${cause}`,
    );
    return;
  }
  const { outcome } = event;
  output.report({ event: 'policy', volume, policy, ...outcome }, `${who} ${endOf(outcome)}`);
  if (outcome.state !== 'done') output.warn(`Policy ${policy} of ${volume} ${endOf(outcome)}`);
  else if (outcome.warning !== undefined) output.warn(`Policy ${policy} of ${volume}: ${outcome.warning}`);
}

function endOf({
  state,
  reason,
  set,
  level,
  snapshot,
  bytesStored,
  removed,
  warning,
}: PolicyOutcome): string {
  if (state !== 'done') return `${state === 'interrupted' ? 'was interrupted' : state}: ${reason}`;
  const what =
    set === undefined
      ? `snapshot ${snapshot}`
      : `${level} set ${set}, ${formatSize(bytesStored ?? 0)} stored`;
  const went = removed === undefined || removed === 0 ? '' : `, ${removed} removed`;
  return `done: ${what}${went}${warning === undefined ? '' : `; ${warning}`}`;
}
