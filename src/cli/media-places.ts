/**
 * Where media are, as commands take it: files, pipes, devices and `-`, in turn, with a command that loads the
 * wanted medium where one drive takes several.
 */

import { fstatSync, read, statSync, write } from 'node:fs';
import { promisify } from 'node:util';
import type { Argv } from 'yargs';
import { LIMITS, systemCode } from '../base/index.ts';
import { describeEnd, hasSucceeded, runHookProcess } from '../daemon/index.ts';
import {
  descriptorInput,
  descriptorOutput,
  logMedia,
  MediaError,
  type MediaFailure,
  type MediaLogEntry,
  type MediumInput,
  type MediumOutput,
  openMediumInput,
  openMediumOutput,
  type OpenInput,
  type OpenOutput,
  type WantedInput,
} from '../media/index.ts';
import { absolutePath, single } from './arguments.ts';
import type { CommandContext } from './command.ts';
import { UsageError } from './exit.ts';

const writeTo = promisify(write);
const readFrom = promisify(read);

/** Standard input or output, where a medium is named. */
export const STANDARD = '-';
/** Stands for the medium's number in a path. */
export const NUMBER = '{n}';

export interface MediaOptions {
  readonly load: string | undefined;
  readonly notify: string | undefined;
}

export const LOAD = {
  type: 'string',
  requiresArg: true,
  describe:
    'Command that loads a medium, run before each: COWBELL_MEDIUM has its name (empty for any), COWBELL_NUMBER, COWBELL_DEVICE and COWBELL_ACTION (read or write) say the rest',
} as const;

export function addMediaOptions<T>(command: Argv<T>) {
  return command.option('load', LOAD).option('notify', {
    type: 'string',
    requiresArg: true,
    describe: 'Command that tells the operator of a failed medium; COWBELL_MESSAGE says what happened',
  });
}

/** Paths made absolute; `-` stays, and stands alone. @throws {UsageError} */
export function readPlaces(option: string, texts: readonly string[], directory: string): readonly string[] {
  if (texts.length === 0)
    throw new UsageError(`${option} is missing, wanted a file, a device or ${STANDARD}`);
  if (texts.includes(STANDARD) && texts.length > 1) {
    throw new UsageError(`${option} names ${STANDARD} and others, wanted ${STANDARD} alone`);
  }
  return texts.map((text) => (text === STANDARD ? text : absolutePath(option, text, directory)));
}

/**
 * Opens the places in turn for writing. With a loader they are used again and again; without one a file gets
 * successors with the number of their medium at the end.
 */
export function outputsAt(
  context: Pick<CommandContext, 'signal'>,
  places: readonly string[],
  options: Pick<MediaOptions, 'load'> & { readonly overwrite: boolean },
): OpenOutput {
  const load = single('--load', options.load);
  return async ({ medium, name }) => {
    const place = placeFor(places, medium, load !== undefined);
    if (place === undefined) {
      const message = `Medium ${name} is needed, ${places.join(', ')} cannot take another`;
      throw new MediaError('no-medium', message, { missing: [medium] });
    }
    if (load !== undefined) await loadMedium(context, load, { name, medium, place, action: 'write' });
    return place === STANDARD ? standardOutput() : await openMediumOutput(place, options);
  };
}

function placeFor(places: readonly string[], medium: number, isReused: boolean): string | undefined {
  const listed = places[isReused ? (medium - 1) % places.length : medium - 1];
  const last = places.at(-1) ?? STANDARD;
  if (listed !== undefined) return listed.replace(NUMBER, String(medium));
  if (last.includes(NUMBER)) return last.replace(NUMBER, String(medium));
  return last === STANDARD || !isFile(last) ? undefined : `${last}.${medium}`;
}

function isFile(path: string): boolean {
  try {
    return statSync(path).isFile();
  } catch (error) {
    return systemCode(error) === 'ENOENT';
  }
}

/** Opens the places in turn for reading; with a loader again and again. What was refused is asked for again of a loader only. */
export function inputsAt(
  context: Pick<CommandContext, 'signal'> & { readonly output: Pick<CommandContext['output'], 'warn'> },
  places: readonly string[],
  options: Pick<MediaOptions, 'load'>,
): OpenInput {
  const load = single('--load', options.load);
  let next = 0;
  return async (wanted) => {
    if (wanted.refused !== undefined) {
      if (load === undefined) throw wanted.refused;
      context.output.warn(wanted.refused.message);
    }
    const place = places[load === undefined ? next : next % places.length];
    next += 1;
    if (place === undefined) return undefined;
    if (load !== undefined) await loadMedium(context, load, { ...named(wanted), place, action: 'read' });
    return place === STANDARD ? standardInput() : await openMediumInput(place);
  };
}

function named({ name = '', medium }: WantedInput): { name: string; medium: number } {
  return { name, medium };
}

async function loadMedium(
  { signal }: Pick<CommandContext, 'signal'>,
  command: string,
  wanted: { readonly name: string; readonly medium: number; readonly place: string; readonly action: string },
): Promise<void> {
  const end = await runHookProcess({
    command,
    environment: {
      COWBELL_MEDIUM: wanted.name,
      COWBELL_NUMBER: String(wanted.medium),
      COWBELL_DEVICE: wanted.place,
      COWBELL_ACTION: wanted.action,
    },
    timeoutMs: LIMITS.mediaLoadMsMax,
    graceMs: LIMITS.hookGraceMs,
    signal,
  });
  if (hasSucceeded(end)) return;
  const said = end.stderr.trim() || 'it said nothing';
  const message = `Loading medium ${wanted.name} ended with ${describeEnd(end)}: ${said}`;
  throw new MediaError('no-medium', message, { missing: [wanted.medium] });
}

/** Tells the log of the store, where there is one, and the operator. */
export function failureTeller(
  context: CommandContext,
  options: MediaOptions,
  about: Pick<MediaLogEntry, 'action' | 'label'> & { readonly store: string | undefined },
): (failure: MediaFailure) => Promise<void> {
  const notify = single('--notify', options.notify);
  return async ({ medium, reason }) => {
    const { action, label, store } = about;
    const message = `Medium ${medium} of ${label} failed: ${reason}`;
    context.output.warn(message);
    if (store !== undefined)
      await logMedia(store, { atMs: context.clock.now(), action, label, medium, reason });
    if (notify === undefined) return;
    const end = await runHookProcess({
      command: notify,
      environment: { COWBELL_MESSAGE: message },
      timeoutMs: LIMITS.hookTimeoutMsMax,
      graceMs: LIMITS.hookGraceMs,
    });
    if (!hasSucceeded(end)) context.output.warn(`--notify ended with ${describeEnd(end)}`);
  };
}

/**
 * A pipe of this process is opened once more, which gives it a state of its own: this one's may be
 * non-blocking, and waiting for room in it would cost time.
 */
async function standardOutput(): Promise<MediumOutput> {
  if (fstatSync(1).isFIFO()) return await openMediumOutput('/proc/self/fd/1');
  return descriptorOutput('standard output', {
    fd: 1,
    write: (buffer, offset, length) => writeTo(1, buffer, offset, length),
    close: async () => {},
  });
}

async function standardInput(): Promise<MediumInput> {
  if (fstatSync(0).isFIFO()) return await openMediumInput('/proc/self/fd/0');
  return descriptorInput('standard input', {
    read: (buffer, offset, length) => readFrom(0, buffer, offset, length, null),
    close: async () => {},
  });
}
