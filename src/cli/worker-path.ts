/**
 * Where the programs of child processes lie: beside this file, compiled or not as this file is. The build puts each
 * with what it needs into few files, whose names do not matter: a module at a time they take twice as long to load.
 */

import { extname } from 'node:path';
import { fileURLToPath } from 'node:url';

export function workerPath(): string {
  return pathOf('session-worker');
}

export function lanePath(): string {
  return pathOf('lane-worker');
}

export function chainReaderPath(): string {
  return pathOf('chain-reader');
}

export function storeReaderPath(): string {
  return pathOf('store-reader');
}

export function mediumFeedPath(): string {
  return pathOf('medium-feed');
}

export function supervisorPath(): string {
  return pathOf('attach-supervisor');
}

/** The command line itself, for what a server does by a command of its own. */
export function mainPath(): string {
  return pathOf('main');
}

function pathOf(program: string): string {
  return fileURLToPath(new URL(`./${program}${extname(import.meta.url)}`, import.meta.url));
}
